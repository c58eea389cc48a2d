//! From a [`Tree`] to the types of the language, going on after a mistake.
//!
//! A serde visitor stops at its first error. Here the error is recorded, what it is about is left out or replaced by
//! a hole, and the whole is read again, until nothing is wrong: so a file with ten mistakes gets ten diagnostics.
//! Files are small, and each turn leaves out one thing more, so this ends.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::value::{SeqDeserializer, StrDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::fault::{Fault, What};
use super::hole::Hole;
use super::mistake::Mistakes;
use super::place::{Place, SPANNED, SPANNED_FIELDS};
use super::tree::{Kind, Tree, typed};

/// The name of an enum whose variants `$text`, `$list` and `$map` are told apart by the value's shape.
const BY_SHAPE: &str = "$by_shape";

/// What has been left out or replaced so far, by the identity of its tree.
#[derive(Debug, Default)]
pub(super) struct Holes {
    /// Keys that no setting has.
    skipped: BTreeSet<u32>,
    /// Values that could not be read.
    replaced: BTreeSet<u32>,
    /// Settings that a map lacks.
    missing: BTreeMap<u32, BTreeSet<&'static str>>,
    /// Settings that a left-out key of a map was meant to be, most likely.
    meant: BTreeSet<(u32, String)>,
}

impl Holes {
    /// Whether something inside a tree stands for what could not be read. Left-out keys do not count.
    pub(super) fn inside(&self, tree: &Tree) -> bool {
        if self.replaced.contains(&tree.id) || self.missing.contains_key(&tree.id) {
            return true;
        }
        match &tree.kind {
            Kind::Unresolved => true,
            Kind::List(items) => items.iter().any(|item| self.inside(item)),
            Kind::Map(entries) => entries.iter().any(|(_, value)| self.inside(value)),
            _ => false,
        }
    }

    /// Whether a fault follows from one reported before: a setting is missing because its name is misspelt.
    fn explains(&self, fault: &Fault) -> bool {
        matches!(fault.what, What::Missing(field) if self.meant.contains(&(fault.id, field.to_owned())))
    }

    /// Notes what a fault is about. False when it was noted before, so that reading again would not help.
    fn note(&mut self, fault: &Fault) -> bool {
        self.meant.extend(fault.meant().map(|field| (fault.map, field.to_owned())));
        match fault.what {
            What::NoSuchField { .. } => self.skipped.insert(fault.id),
            What::Missing(field) => self.missing.entry(fault.id).or_default().insert(field),
            What::Wrong { .. } => self.replaced.insert(fault.id),
        }
    }
}

/// Reads a tree as a `T`. `whole` is what the tree is, for messages: "the pipeline".
///
/// Gives the value, with holes where there were mistakes, and says where the holes are.
pub(super) fn decode<T: for<'de> Deserialize<'de>>(
    tree: &Tree,
    whole: &str,
    mistakes: &mut Mistakes,
) -> (Option<T>, Holes) {
    let mut holes = Holes::default();
    loop {
        match T::deserialize(Value { tree, holes: &holes, is_key: false }) {
            Ok(value) => return (Some(value), holes),
            Err(fault) => {
                let fault = fault.at(tree);
                if !holes.explains(&fault) {
                    fault.report(tree, whole, mistakes);
                }
                if !holes.note(&fault) {
                    return (None, holes);
                }
            }
        }
    }
}

/// A tree as serde reads it.
#[derive(Clone, Copy)]
struct Value<'t> {
    tree: &'t Tree,
    holes: &'t Holes,
    is_key: bool,
}

impl<'t> Value<'t> {
    fn child(self, tree: &'t Tree) -> Self {
        Self { tree, holes: self.holes, is_key: false }
    }

    fn is_hole(self) -> bool {
        matches!(self.tree.kind, Kind::Unresolved) || self.holes.replaced.contains(&self.tree.id)
    }

    fn wrong(self, wanted: &str) -> Fault {
        Fault::wrong(wanted, self.tree)
    }

    /// Text that came out of the environment stands for what is wanted of it.
    fn resolved(self) -> Option<&'t str> {
        match &self.tree.kind {
            Kind::Text { text, resolved: true } => Some(text.trim()),
            _ => None,
        }
    }

    /// What the tree is, and for a text out of the environment what YAML would take it for.
    fn typed(self) -> Option<Kind> {
        match (&self.tree.kind, self.resolved()) {
            (_, Some(text)) => typed(text),
            (kind @ (Kind::Bool(_) | Kind::Int(_) | Kind::Float(_)), None) => Some(kind.clone()),
            _ => None,
        }
    }

    fn integer<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Some(Kind::Int(value)) = self.typed() else {
            return Err(self.wrong("a whole number"));
        };
        self.whole(value, visitor)
    }

    fn whole<'de, V: Visitor<'de>>(self, value: i128, visitor: V) -> Result<V::Value, Fault> {
        let visited = match (u64::try_from(value), i64::try_from(value)) {
            (Ok(value), _) => visitor.visit_u64::<Fault>(value),
            (_, Ok(value)) => visitor.visit_i64(value),
            _ => Err(self.wrong("a smaller whole number")),
        };
        visited.map_err(|_| {
            self.wrong(if value < 0 { "a whole number from 0" } else { "a smaller whole number" })
        })
    }

    fn float<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.typed() {
            Some(Kind::Float(value)) => visitor.visit_f64(value),
            Some(Kind::Int(value)) => visitor.visit_f64(value as f64),
            _ => Err(self.wrong("a number")),
        }
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match (&self.tree.kind, self.tree.scalar()) {
            (Kind::Text { text, .. }, _) => visitor.visit_str(text),
            (_, Some(text)) if self.is_key => visitor.visit_string(text),
            _ => Err(self.wrong("a text")),
        }
    }

    fn list<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.kind {
            Kind::List(items) => {
                visitor.visit_seq(Items { of: self, items: items.iter().enumerate() })
            }
            _ => Err(self.wrong("a list")),
        }
    }

    fn map<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.kind {
            Kind::Map(entries) => {
                let missing =
                    self.holes.missing.get(&self.tree.id).into_iter().flatten().copied().collect();
                visitor.visit_map(Entries { of: self, rest: entries.iter(), value: None, missing })
            }
            _ => Err(self.wrong("a map")),
        }
    }

    fn any<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if let Some(kind) = self.resolved().and_then(typed) {
            return match kind {
                Kind::Bool(value) => visitor.visit_bool(value),
                Kind::Int(value) => self.whole(value, visitor),
                Kind::Float(value) => visitor.visit_f64(value),
                _ => visitor.visit_unit(),
            };
        }
        match &self.tree.kind {
            Kind::Null | Kind::Unresolved => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Int(value) => self.whole(*value, visitor),
            Kind::Float(value) => visitor.visit_f64(*value),
            Kind::Text { text, .. } => visitor.visit_str(text),
            Kind::List(_) => self.list(visitor),
            Kind::Map(_) => self.map(visitor),
        }
    }

    fn one_of<'de, V: Visitor<'de>>(
        self,
        name: &str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name == BY_SHAPE {
            let shape = match &self.tree.kind {
                Kind::List(_) => "$list",
                Kind::Map(_) => "$map",
                _ => "$text",
            };
            if !variants.contains(&shape) {
                return Err(self.wrong(if variants.contains(&"$map") {
                    "a text or a map"
                } else {
                    "a text"
                }));
            }
            return visitor.visit_enum(Variant {
                name: shape,
                key: None,
                payload: Some(self),
                of: self,
            });
        }
        let (key, payload) = match &self.tree.kind {
            Kind::Text { .. } => (self.tree, None),
            Kind::Map(entries) if entries.len() == 1 => {
                (&entries[0].0, Some(self.child(&entries[0].1)))
            }
            Kind::Map(entries) => return Err(Fault::not_one_entry(self.tree, entries, variants)),
            _ => return Err(self.wrong(&Fault::choices(variants))),
        };
        match variants.iter().find(|variant| key.is_text(variant)) {
            Some(name) => {
                visitor.visit_enum(Variant { name, key: payload.map(|_| key), payload, of: self })
            }
            None => Err(Fault::no_such_variant(self.tree, key, variants)),
        }
    }
}

/// Numbers and texts all go the same three ways.
macro_rules! typed {
    ($($method:ident => $to:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            if self.is_hole() {
                return Hole.$method(visitor);
            }
            self.$to(visitor).map_err(|fault| fault.at(self.tree))
        })*
    };
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = Fault;

    typed! {
        deserialize_i8 => integer deserialize_i16 => integer deserialize_i32 => integer deserialize_i64 => integer
        deserialize_u8 => integer deserialize_u16 => integer deserialize_u32 => integer deserialize_u64 => integer
        deserialize_f32 => float deserialize_f64 => float
        deserialize_str => text deserialize_string => text deserialize_identifier => text
        deserialize_seq => list deserialize_map => map deserialize_any => any
    }

    forward_to_deserialize_any! { i128 u128 char bytes byte_buf unit unit_struct }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.is_hole() {
            return visitor.visit_bool(false);
        }
        match self.typed() {
            Some(Kind::Bool(value)) => visitor.visit_bool(value),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.kind {
            _ if self.is_hole() => visitor.visit_some(self),
            Kind::Null => visitor.visit_none(),
            _ if matches!(self.resolved().and_then(typed), Some(Kind::Null)) => {
                visitor.visit_none()
            }
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self).map_err(|fault| fault.at(self.tree))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Fault> {
        match &self.tree.kind {
            _ if self.is_hole() => Hole.deserialize_tuple(len, visitor),
            Kind::List(items) if items.len() == len => self.list(visitor),
            _ => Err(self.wrong(&format!("a list of {len}"))),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_tuple(len, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name == SPANNED {
            return visitor.visit_map(WithPlace { of: self, next: 0 });
        }
        if self.is_hole() {
            return Hole.deserialize_struct(name, fields, visitor);
        }
        self.map(visitor).map_err(|fault| fault.at(self.tree))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if self.is_hole() {
            return Hole.deserialize_enum(name, variants, visitor);
        }
        self.one_of(name, variants, visitor).map_err(|fault| fault.at(self.tree))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

/// The items of a list.
struct Items<'t> {
    of: Value<'t>,
    items: std::iter::Enumerate<std::slice::Iter<'t, Tree>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some((index, item)) = self.items.next() else { return Ok(None) };
        seed.deserialize(self.of.child(item))
            .map(Some)
            .map_err(|fault| fault.under(format!("[{index}]"), None))
    }
}

/// The entries of a map, without those left out, and then the settings it lacks, as holes.
struct Entries<'t> {
    of: Value<'t>,
    rest: std::slice::Iter<'t, (Tree, Tree)>,
    value: Option<(&'t Tree, &'t Tree)>,
    missing: Vec<&'static str>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let skipped = &self.of.holes.skipped;
        if let Some((key, value)) = self.rest.by_ref().find(|(key, _)| !skipped.contains(&key.id)) {
            self.value = Some((key, value));
            let key = Value { is_key: true, ..self.of.child(key) };
            return seed.deserialize(key).map(Some).map_err(|fault| fault.in_map(self.of.tree));
        }
        self.value = None;
        match self.missing.last() {
            Some(field) => seed.deserialize(field.into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((key, value)) = self.value.take() else {
            self.missing.pop();
            return seed.deserialize(Hole);
        };
        seed.deserialize(self.of.child(value))
            .map_err(|fault| fault.under(key.scalar().unwrap_or_default(), Some((key, value))))
    }
}

/// The two fields of a [`Spanned`](super::place::Spanned).
struct WithPlace<'t> {
    of: Value<'t>,
    next: usize,
}

impl<'de> MapAccess<'de> for WithPlace<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some(field) = SPANNED_FIELDS.get(self.next) else { return Ok(None) };
        seed.deserialize(StrDeserializer::new(field)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        self.next += 1;
        if self.next == 1 {
            // A hole has no place, and so is not complained about again.
            let place = if self.of.is_hole() { Place::NOWHERE } else { self.of.tree.place };
            let Place { file, line, column, start, len } = place;
            return seed
                .deserialize(SeqDeserializer::new([file, line, column, start, len].into_iter()));
        }
        seed.deserialize(self.of)
    }
}

/// A word, or a word with what it needs.
struct Variant<'t> {
    name: &'static str,
    key: Option<&'t Tree>,
    payload: Option<Value<'t>>,
    of: Value<'t>,
}

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        Ok((seed.deserialize(StrDeserializer::<Fault>::new(self.name))?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.payload {
            None => Ok(()),
            Some(payload) => {
                Err(Fault::custom(format!("\"{}\" stands alone", self.name)).at(payload.tree))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        let Some(payload) = self.payload else {
            return Err(Fault::alone(self.name, self.of.tree));
        };
        seed.deserialize(payload).map_err(|fault| match self.key {
            Some(key) => fault.under(self.name.to_owned(), Some((key, payload.tree))),
            None => fault,
        })
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        unreachable!("the language has no tuple variants")
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Fault> {
        unreachable!("the language has no struct variants")
    }
}
