//! Bounds on what a Jinja template may take: templates come with checkpoints and constitutions of others.
//!
//! Fuel bounds the steps of a template, and none of what a single step makes: `"%999999999d"|format(1)` is
//! one step. Here what filters and methods are given and give is bounded, and what is written.

use std::cell::Cell;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Template, Value, escape_formatter};

/// The most bytes of a text that a template makes.
pub const BYTES_MAX: usize = 16 << 20;
/// The most items of a list that a filter goes through.
const ITEMS_MAX: usize = 100_000;
/// The widest that a value is made by `format` and `indent`, and the most that `batch` and `slice` count.
const WIDTH_MAX: usize = 10_000;

/// The filters of the environments that are bounded.
const FILTERS: &[&str] = &[
    "abs",
    "attr",
    "batch",
    "bool",
    "capitalize",
    "chain",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
    "zip",
];

thread_local! {
    /// Bytes of values that the template written last in this thread wrote, wherever to.
    static WRITTEN: Cell<usize> = const { Cell::new(0) };
}

/// How an environment answers to a method that a value has not.
pub type Methods = fn(&State<'_, '_>, &Value, &str, &[Value]) -> Result<Value, Error>;

/// Bounds what the filters of an environment, and the methods of its values, may take. Filters that are
/// added later are not bounded.
pub fn bound(environment: &mut Environment<'static>, methods: Methods) {
    let inner = Arc::new(environment.clone());
    for name in FILTERS {
        let inner = Arc::clone(&inner);
        environment.add_filter(*name, move |args: Rest<Value>| -> Result<Value, Error> {
            given(name, &args)?;
            small(inner.empty_state().apply_filter(name, &args)?)
        });
    }
    environment.set_unknown_method_callback(move |state, value, method, args| {
        let all: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
        given(method, &all)?;
        small(methods(state, value, method, args)?)
    });
    environment.set_formatter(|out, state, value| {
        let written = WRITTEN.get().saturating_add(bytes(value)?);
        if written > BYTES_MAX {
            return Err(too_large("what it writes"));
        }
        WRITTEN.set(written);
        escape_formatter(out, state, value)
    });
}

/// Renders a template, or says that it writes too much.
pub fn render(template: &Template<'_, '_>, context: Value) -> Result<String, Error> {
    WRITTEN.set(0);
    let mut text = Bounded(Vec::new());
    template.render_captured_to(context, &mut text)?;
    String::from_utf8(text.0)
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, "a template writes what is no text"))
}

/// Takes so many bytes and no more.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > BYTES_MAX {
            return Err(io::Error::other(format!("it writes more than {} MiB", BYTES_MAX >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn too_large(what: &str) -> Error {
    let most = BYTES_MAX >> 20;
    Error::new(ErrorKind::InvalidOperation, format!("{what} is larger than {most} MiB"))
}

/// The bytes of a value as text, as long as they are not too many.
fn bytes(value: &Value) -> Result<usize, Error> {
    /// Counts what is written.
    struct Count(usize);

    impl std::fmt::Write for Count {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0 += text.len();
            if self.0 > BYTES_MAX { Err(std::fmt::Error) } else { Ok(()) }
        }
    }

    if let Some(text) = value.as_str() {
        return Ok(text.len());
    }
    // What is written of a list goes on through all of it, also when nobody takes it any more.
    few(value, &mut 0)?;
    let mut count = Count(0);
    write!(count, "{value}").map_err(|_| too_large("a value"))?;
    Ok(count.0)
}

/// Checks that a list, with the lists in it, has not too many items.
fn few(value: &Value, counted: &mut usize) -> Result<(), Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(());
    }
    *counted = counted.saturating_add(value.len().unwrap_or(0));
    if *counted > ITEMS_MAX {
        let message = format!("a list has more than {ITEMS_MAX} items");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    value.try_iter()?.try_for_each(|item| few(&item, counted))
}

/// What a filter or method gives is not too large.
fn small(value: Value) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) if text.len() > BYTES_MAX => Err(too_large("a text")),
        _ => Ok(value),
    }
}

/// Checks what a filter or method is given.
fn given(name: &str, args: &[Value]) -> Result<(), Error> {
    for arg in args {
        let is_list = matches!(arg.kind(), ValueKind::Seq | ValueKind::Iterable);
        if is_list && arg.len().is_some_and(|items| items > ITEMS_MAX) {
            let message = format!("`{name}` is given a list of more than {ITEMS_MAX} items");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    match (name, args) {
        ("batch" | "slice" | "indent" | "tojson", [_, rest @ ..]) => {
            rest.iter().try_for_each(|arg| narrow(name, arg))
        }
        ("format", [format, rest @ ..]) => {
            let format = format.as_str().unwrap_or_default();
            // A width may stand in the format, or be an argument of it.
            let by_argument =
                format.contains('*') || format.contains(":{") || format.contains(".{");
            if by_argument {
                rest.iter().try_for_each(|arg| narrow(name, arg))?;
            }
            let numbers = format.split(|letter: char| !letter.is_ascii_digit());
            let is_wide = |digits: &str| {
                let digits = digits.trim_start_matches('0');
                digits.len() > 6 || digits.parse().is_ok_and(|width: usize| width > WIDTH_MAX)
            };
            if numbers.into_iter().any(is_wide) { Err(too_wide(name)) } else { Ok(()) }
        }
        ("replace", [text, from, to, ..]) => {
            let [text, from, to] = [text, from, to].map(|part| part.as_str().unwrap_or_default());
            let found = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
            fits("`replace`", text.len().saturating_add(found.saturating_mul(to.len())))
        }
        // The filter is given the list first, the method the text between.
        ("join", [list, between, ..]) => {
            let (list, between) =
                if list.as_str().is_some() { (between, list) } else { (list, between) };
            let between = between.as_str().map_or(0, str::len);
            fits("`join`", between.saturating_mul(list.len().unwrap_or(0)))
        }
        _ => Ok(()),
    }
}

fn fits(what: &str, bytes: usize) -> Result<(), Error> {
    if bytes > BYTES_MAX { Err(too_large(&format!("what {what} makes"))) } else { Ok(()) }
}

fn too_wide(name: &str) -> Error {
    let message = format!("`{name}` is given a width or count above {WIDTH_MAX}");
    Error::new(ErrorKind::InvalidOperation, message)
}

/// A number, or those of named arguments, are not too great.
fn narrow(name: &str, arg: &Value) -> Result<(), Error> {
    if arg.is_number() && arg.as_i64().is_none_or(|width| width.unsigned_abs() > WIDTH_MAX as u64) {
        return Err(too_wide(name));
    }
    if arg.is_kwargs() {
        for key in arg.try_iter()? {
            narrow(name, &arg.get_item(&key)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn rendered(source: &str) -> Result<String, String> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(1_000_000));
        bound(&mut environment, minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_template_owned("t", source.to_owned()).unwrap();
        let template = environment.get_template("t").unwrap();
        let context = context! { items => [1, 2, 3], word => "abc", most => 99_999_999 };
        render(&template, context).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn what_is_usual_is_as_without_bounds() {
        for (source, text) in [
            ("{{ '%05d'|format(7) }} {{ '{:>4}'.format(word) }}", "00007  abc"),
            ("{{ items|batch(2, 0)|list }}", "[[1, 2], [3, 0]]"),
            ("{{ items|map('string')|join('-') }} {{ '-'.join(['a', 'b']) }}", "1-2-3 a-b"),
            ("{{ word|indent(2, true) }}|{{ word|indent(width=1, first=true) }}", "  abc| abc"),
            ("{{ word|replace('b', 'x') }} {{ word.replace('b', 'y') }}", "axc ayc"),
            ("{{ missing|default('none') }} {{ items|length }}", "none 3"),
            ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        ] {
            assert_eq!(rendered(source).as_deref(), Ok(text), "{source}");
        }
    }

    #[test]
    fn no_step_makes_more_than_it_may() {
        for source in [
            "{{ '%999999999d'|format(1) }}",
            "{{ '%*d'|format(most, 1) }}",
            "{{ '%.999999999f'|format(1.5) }}",
            "{{ '{:999999999}'.format(1) }}",
            "{{ '{:{}}'.format(1, most) }}",
            "{{ items|batch(most, 0) }}",
            "{{ items|slice(most) }}",
            "{{ word|indent(most, true) }}",
            "{{ word|indent(width=most, first=true) }}",
            "{{ items|tojson(indent=most) }}",
            "{{ (items * most)|list }}",
            "{{ (items * most)|join }}",
            "{{ items * most }}",
            "{{ [items * most] }}",
            "{{ ('ab' * 9999999)|replace('', 'abc' * 1000) }}",
            "{{ ('a' * 9999999).replace('a', 'abc') }}",
            "{{ range(99999)|join('a' * 10000) }}",
            "{{ 'a' * 99999999 }}",
            "{{ 'a' * 999999999999 }}",
            "{{ range(999999999) }}",
            "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
            "{% set x %}{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}{% endset %}",
            "{% for i in range(99999) %}{% for j in range(99999) %}.{% endfor %}{% endfor %}",
        ] {
            let error = rendered(source).unwrap_err();
            let is_told = ["MiB", "width or count", "items", "too large", "too many", "fuel"];
            assert!(is_told.iter().any(|told| error.contains(told)), "{source}: {error}");
        }
    }
}
