//! A model's chat template, rendered as transformers renders it with Jinja2. It comes with the
//! model and is not trusted: it reaches no file, no loader, and has a limit on its steps, its
//! recursion and its output.

use std::collections::BTreeMap;
use std::fmt;

use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use regex::Regex;
use serde_json::{Map, Value as Json};

use crate::python;

/// Instructions of one rendering. A message takes some tens of them; a value can grow by a level
/// with each, which bounds the stack that its drop needs (about 80 bytes a level).
const FUEL: u64 = 2_500_000;
const MAX_SOURCE: usize = 256 << 10;
const STACK_SIZE: usize = 256 << 20; // reserved; only what is used is ever touched
const MAX_OUTPUT: usize = 8 << 20;
const MAX_RECURSION: usize = 200;
const NAME: &str = "chat template";

pub struct ChatTemplate {
    environment: Environment<'static>,
    variables: BTreeMap<String, Value>, // of every rendering
}

impl ChatTemplate {
    pub fn parse(source: &str, bos: &str, eos: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("it is longer than {MAX_SOURCE} bytes"));
        }
        let source = without_generation_tags(source)?;
        let environment = on_deep_stack(|| {
            let mut environment = environment();
            environment.add_template_owned(NAME, source).map_err(|e| describe(&e))?;
            Ok(environment)
        })?;
        let special = [("bos_token", bos), ("eos_token", eos)].map(|(k, v)| (k.into(), v.into()));
        let mut variables = BTreeMap::<String, Value>::from(special);
        variables.retain(|_, token| token.is_true()); // one that is not given is undefined
        // A template asks `tools is not none`, which an undefined variable would pass.
        variables.extend(["documents", "tools"].map(|name| (name.into(), ().into())));
        Ok(ChatTemplate { environment, variables })
    }

    pub fn render(
        &self,
        messages: &[u8],
        extra: &[u8],
        add_generation_prompt: bool,
    ) -> Result<Vec<u8>, String> {
        let messages: Vec<Map<String, Json>> = serde_json::from_slice(messages)
            .map_err(|e| format!("messages is not an array of objects: {e}"))?;
        let extra: Map<String, Json> = serde_json::from_slice(extra)
            .map_err(|e| format!("the template's variables are not an object: {e}"))?;

        let mut context = self.variables.clone();
        context.extend(extra.iter().map(|(k, v)| (k.clone(), Value::from_serialize(v))));
        context.insert("messages".to_owned(), Value::from_serialize(&messages));
        context.insert("add_generation_prompt".to_owned(), Value::from(add_generation_prompt));

        on_deep_stack(|| {
            let mut output = vec![0; MAX_OUTPUT]; // touched as used
            let mut rest = output.as_mut_slice();
            self.environment
                .get_template(NAME)
                .and_then(|template| {
                    template.render_captured_to(Value::from_iter(context), &mut rest).map(|_| ())
                })
                .map_err(|e| describe(&e))?;
            let unused = rest.len();
            output.truncate(MAX_OUTPUT - unused);
            Ok(output)
        })
    }
}

/// The parser recurses along chains of operators, and values are dropped level by level: a thread
/// of its own has the stack for the longest chain and the deepest value the limits allow.
fn on_deep_stack<T: Send>(body: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_SIZE)
            .spawn_scoped(scope, body)
            .map_err(|e| format!("no thread for the chat template: {e}"))?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(python::call_method);
    environment.set_formatter(|out, _state, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&python::to_str(value)?).map_err(Error::from),
    });
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", |value: &Value| python::to_str(value));
    environment.add_filter("trim", python::trim);
    // In Python a text is a sequence of characters, and a dict has a length and items too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    environment.add_test("iterable", |value: &Value| {
        value.kind() == ValueKind::String || (!value.is_none() && value.try_iter().is_ok())
    });
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised by the template")
            .with_source(Raised(python::to_str(message)?)))
    });
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// `{% generation %}` marks what an assistant wrote, for training: here only its scope remains.
fn without_generation_tags(source: &str) -> Result<String, String> {
    let tag =
        Regex::new(r"\{%([-+]?\s*)(end)?generation(\s*[-+]?)%\}").map_err(|e| e.to_string())?;
    Ok(tag.replace_all(source, "{%${1}${2}with${3}%}").into_owned())
}

/// The message of `raise_exception`, kept apart so that a client is told just that.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn describe(error: &Error) -> String {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = source {
        if let Some(raised) = cause.downcast_ref::<Raised>() {
            return raised.0.clone();
        }
        source = cause.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return format!("the chat template did not end within {FUEL} steps");
    }
    if error.kind() == ErrorKind::WriteFailure {
        return format!("the chat template wrote more than {MAX_OUTPUT} bytes");
    }
    error.to_string()
}

/// Local time in strftime's format, as Python's `datetime.now().strftime(format)`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let refused = || Error::new(ErrorKind::InvalidOperation, "strftime_now: a bad format");
    if format.is_empty() {
        return Ok(String::new());
    }
    let format = std::ffi::CString::new(format).map_err(|_| refused())?;
    let mut buffer = [0u8; 1024];
    // SAFETY: `now` is filled by localtime_r before it is read, and strftime is told the size.
    let length = unsafe {
        let seconds = libc::time(std::ptr::null_mut());
        let mut now: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&seconds, &mut now).is_null() {
            return Err(refused());
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &now)
    };
    if length == 0 {
        return Err(refused());
    }
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
