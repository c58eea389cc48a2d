//! Lenient fields: a part of a reply that is null, missing or of another kind is no reason to lose
//! the rest of the reply.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A field that may hold anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Field<T> {
    /// It is missing or null.
    #[default]
    Absent,
    /// It is what it should be.
    Is(T),
    /// It is something else, such as "a number".
    Other(&'static str),
}

impl<T> Field<T> {
    /// The value, if it is what it should be.
    pub(super) fn get(&self) -> Option<&T> {
        match self {
            Field::Is(value) => Some(value),
            Field::Absent | Field::Other(_) => None,
        }
    }

    /// The value, if it is what it should be.
    pub(super) fn take(self) -> Option<T> {
        match self {
            Field::Is(value) => Some(value),
            Field::Absent | Field::Other(_) => None,
        }
    }

    /// The value of a field that is needed, or what is wrong with it; `name` is its path in the reply.
    pub(super) fn needed(&self, name: &str) -> Result<&T, String>
    where
        T: Shape,
    {
        match self {
            Field::Is(value) => Ok(value),
            Field::Absent => Err(format!("the reply has no `{name}`")),
            Field::Other(kind) => {
                Err(format!("`{name}` of the reply is {kind}, and should be {}", T::WHAT))
            }
        }
    }
}

/// What a JSON value must look like to be read as this type. What is not overridden does not fit.
pub(super) trait Shape: Sized {
    /// Such as "a text".
    const WHAT: &'static str;

    fn of_text(_text: &str) -> Option<Self> {
        None
    }

    fn of_number(_number: f64) -> Option<Self> {
        None
    }

    fn of_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn of_object<'de, A: MapAccess<'de>>(mut object: A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Reads an object by its type's own `Deserialize`.
macro_rules! object {
    ($($shape:ty: $what:literal),* $(,)?) => {
        $(impl Shape for $shape {
            const WHAT: &'static str = $what;

            fn of_object<'de, A: serde::de::MapAccess<'de>>(object: A) -> Result<Option<Self>, A::Error> {
                let object = serde::de::value::MapAccessDeserializer::new(object);
                serde::Deserialize::deserialize(object).map(Some)
            }
        })*
    };
}
pub(super) use object;

impl Shape for String {
    const WHAT: &'static str = "a text";

    fn of_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

impl Shape for f64 {
    const WHAT: &'static str = "a number";

    fn of_number(number: f64) -> Option<f64> {
        Some(number)
    }
}

/// A count: what is below 0, or no whole number, is not one.
impl Shape for u32 {
    const WHAT: &'static str = "a count";

    fn of_number(number: f64) -> Option<u32> {
        let is_count = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
        is_count.then_some(number as u32)
    }
}

impl<T: Shape> Shape for Vec<Field<T>> {
    const WHAT: &'static str = "a list";

    fn of_list<'de, A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Vec::with_capacity(list.size_hint().unwrap_or(0).min(1024));
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Some(items))
    }
}

impl<'de, T: Shape> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Field<T>, D::Error> {
        from.deserialize_any(Any(PhantomData))
    }
}

struct Any<T>(PhantomData<T>);

impl<'de, T: Shape> Visitor<'de> for Any<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::WHAT)
    }

    fn visit_unit<E: Error>(self) -> Result<Field<T>, E> {
        Ok(Field::Absent)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Field<T>, E> {
        Ok(Field::Other("true or false"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Field<T>, E> {
        Ok(T::of_text(text).map_or(Field::Other("a text"), Field::Is))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Field<T>, E> {
        Ok(T::of_number(number).map_or(Field::Other("a number"), Field::Is))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Field<T>, E> {
        self.visit_f64(number as f64)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Field<T>, E> {
        self.visit_f64(number as f64)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Field<T>, A::Error> {
        Ok(T::of_list(list)?.map_or(Field::Other("a list"), Field::Is))
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<Field<T>, A::Error> {
        Ok(T::of_object(object)?.map_or(Field::Other("an object"), Field::Is))
    }
}
