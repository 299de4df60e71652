//! What templates expect of Python beyond minijinja: values written as `str()`, `repr()` and
//! `json.dumps()` write them, and some methods of `str`.

use std::fmt::{Display, Write};
use std::sync::LazyLock;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use regex::Regex;

/// Deeper values are refused before they can exhaust the stack.
const MAX_DEPTH: usize = 256;

/// What `repr` escapes: characters that are not printable, and blanks but the space.
static HIDDEN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}--\x20]").unwrap());

fn error(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// Methods of `str`, `list` and `dict`: the few that minijinja's own set lacks, then that set.
pub fn call_method(
    state: &State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, args);
    };
    let one = || from_args::<(&str,)>(args).map(|(argument,)| argument);
    let result = match name {
        "removeprefix" => Value::from(text.strip_prefix(one()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(one()?).unwrap_or(text)),
        "partition" => match text.split_once(one()?) {
            Some((head, tail)) => list(&[head, one()?, tail]),
            None => list(&[text, "", ""]),
        },
        "rpartition" => match text.rsplit_once(one()?) {
            Some((head, tail)) => list(&[head, one()?, tail]),
            None => list(&["", "", text]),
        },
        "rsplit" => {
            let (separator, max): (&str, Option<usize>) = from_args(args)?;
            let parts = text.rsplitn(max.map_or(usize::MAX, |n| n.saturating_add(1)), separator);
            let mut parts: Vec<&str> = parts.collect();
            parts.reverse();
            list(&parts)
        }
        _ => return pycompat::unknown_method_callback(state, value, name, args),
    };
    Ok(result)
}

fn list(parts: &[&str]) -> Value {
    parts.iter().copied().map(Value::from).collect()
}

/// `str(value)`, with Jinja's empty text for an undefined one.
pub fn to_str(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut writer =
                Writer { separators: (", ".into(), ": ".into()), ..Default::default() };
            writer.write(value, 0)?;
            Ok(writer.out)
        }
    }
}

/// The filter `trim`, of anything's text.
pub fn trim(value: &Value, characters: Option<&str>) -> Result<String, Error> {
    let text = to_str(value)?;
    let trimmed = match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)),
        None => text.trim(),
    };
    Ok(trimmed.to_owned())
}

/// The filter `tojson` of transformers: `json.dumps` with its options, not made safe for HTML.
pub fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let ensure_ascii =
        ensure_ascii.map_or_else(|| options.get("ensure_ascii"), |given| Ok(Some(given)))?;
    let indent: Option<Value> =
        indent.map_or_else(|| options.get("indent"), |given| Ok(Some(given)))?;
    let indent = match indent.filter(|value| !value.is_none()) {
        None => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(i64::try_from(value)?.clamp(0, 64) as usize),
        }),
    };
    let separators = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            (to_str(&pair.get_item_by_index(0)?)?, to_str(&pair.get_item_by_index(1)?)?)
        }
        _ => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        out: String::new(),
        json: true,
        ensure_ascii: ensure_ascii.unwrap_or(false),
        indent,
        separators,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    writer.write(value, 0)?;
    Ok(writer.out)
}

/// Writes values as `json.dumps` does with these options or, without `json`, as `repr` does.
#[derive(Default)]
struct Writer {
    out: String,
    json: bool,
    ensure_ascii: bool,
    indent: Option<String>,
    separators: (String, String),
    sort_keys: bool,
}

impl Writer {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(error("a value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.write_word("null", "None"),
            ValueKind::Bool if value.is_true() => self.write_word("true", "True"),
            ValueKind::Bool => self.write_word("false", "False"),
            ValueKind::Number => self.write_number(value),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default()),
            kind if kind == ValueKind::Seq || (self.json && kind == ValueKind::Iterable) => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_items('[', ']', &items, depth, |writer, item| {
                    writer.write(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.write_items('{', '}', &keys, depth, |writer, key| {
                    writer.write_key(key, depth + 1)?;
                    writer.out.push_str(&writer.separators.1);
                    writer.write(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind if self.json => {
                return Err(error(format!("an {kind} value is not JSON serializable")));
            }
            ValueKind::Undefined => self.out.push_str("Undefined"),
            _ => self.write_as_is(value),
        }
        Ok(())
    }

    fn write_word(&mut self, json: &str, python: &str) {
        self.out.push_str(if self.json { json } else { python });
    }

    fn write_as_is(&mut self, shown: impl Display) {
        let _ = write!(self.out, "{shown}");
    }

    fn write_items(
        &mut self,
        open: char,
        close: char,
        items: &[Value],
        depth: usize,
        mut write_item: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(&self.separators.0);
            }
            self.break_line(depth + 1);
            write_item(self, item)?;
        }
        if !items.is_empty() {
            self.break_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn break_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.push_str(&indent.repeat(depth));
        }
    }

    fn write_key(&mut self, key: &Value, depth: usize) -> Result<(), Error> {
        match key.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number if self.json => {
                self.out.push('"');
                self.write(key, depth)?;
                self.out.push('"');
                Ok(())
            }
            kind if self.json && kind != ValueKind::String => {
                Err(error(format!("a key cannot be a {kind} in JSON")))
            }
            _ => self.write(key, depth),
        }
    }

    /// Floats as `repr(float)`: the shortest digits, an exponent below 1e-4 and from 1e16 on.
    fn write_number(&mut self, value: &Value) {
        let number = match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => number,
            _ => return self.write_as_is(value),
        };
        if number.is_nan() {
            self.write_word("NaN", "nan");
        } else if number.is_infinite() {
            self.out.push_str(if number > 0.0 { "" } else { "-" });
            self.write_word("Infinity", "inf");
        } else if number == 0.0 || (1e-4..1e16).contains(&number.abs()) {
            self.write_as_is(format_args!("{number:?}"));
        } else {
            let digits = format!("{number:e}");
            let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            self.write_as_is(format_args!("{mantissa}e{sign}{exponent:0>2}"));
        }
    }

    fn write_string(&mut self, text: &str) {
        let double = self.json || (text.contains('\'') && !text.contains('"'));
        let quote = if double { '"' } else { '\'' };
        self.out.push(quote);
        for c in text.chars() {
            match c {
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' if self.json => self.out.push_str("\\b"),
                '\u{c}' if self.json => self.out.push_str("\\f"),
                c if c == quote || c == '\\' => self.out.extend(['\\', c]),
                c if self.json && (c < ' ' || (self.ensure_ascii && c > '~')) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.write_as_is(format_args!("\\u{unit:04x}"));
                    }
                }
                c if !self.json && HIDDEN.is_match(c.encode_utf8(&mut [0; 4])) => match c as u32 {
                    code @ ..0x100 => self.write_as_is(format_args!("\\x{code:02x}")),
                    code @ ..0x10000 => self.write_as_is(format_args!("\\u{code:04x}")),
                    code => self.write_as_is(format_args!("\\U{code:08x}")),
                },
                c => self.out.push(c),
            }
        }
        self.out.push(quote);
    }
}
