//! What a template may cost: it comes with a model's files, so it may be faulty or hostile.
//!
//! The engine's fuel pays for instructions and for what its own filters make. Python's methods are not the engine's own:
//! they are paid for here, before they make anything.

use std::fmt::{self, Write as _};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Steps of a rendering: about a second of work. A conversation of a million tokens takes 100,000 to 700,000.
pub(super) const FUEL: u64 = 10_000_000;

/// The engine's price of data; all fuel together buys 640 MB.
const BYTES_PER_FUEL: usize = 64;

/// The engine's price of text that is printed value by value, which is slower to make.
const PRINTED_BYTES_PER_FUEL: usize = 4;

/// Calls a method of Python's strings, lists or dictionaries.
pub(super) fn call_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    std::iter::once(value).chain(args).try_for_each(|read| pay_for_reading(state, read))?;
    match (value.kind(), name, args) {
        // The filters refuse a result that is too large; the methods of the same names make it.
        (ValueKind::String, "join", [list]) => state.apply_filter("join", &[list.clone(), value.clone()]),
        (ValueKind::String, "replace", _) => {
            state.apply_filter("replace", &[std::slice::from_ref(value), args].concat())
        }
        (ValueKind::String, "format", _) => {
            pay_for_format(state, value.as_str().unwrap_or_default(), args)?;
            unknown_method_callback(state, value, name, args)
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// The bytes that a rendering may still print, value by value.
pub(super) fn printable_bytes(state: &State) -> usize {
    state.fuel_levels().map_or(usize::MAX, |(_, left)| (left as usize).saturating_mul(PRINTED_BYTES_PER_FUEL))
}

/// Takes the price of printed bytes.
pub(super) fn pay_for_printing(state: &State, num_bytes: usize) -> Result<(), Error> {
    state.consume_fuel((num_bytes / PRINTED_BYTES_PER_FUEL) as u64)
}

/// The error of a rendering that takes too much.
pub(super) fn out_of_fuel() -> Error {
    Error::new(ErrorKind::OutOfFuel, "the template makes too much")
}

/// A list may be a repetition, which takes no memory of its own.
fn pay_for_reading(state: &State, value: &Value) -> Result<(), Error> {
    let fuel = value.as_str().map_or_else(|| value.len().unwrap_or(0), |text| text.len() / BYTES_PER_FUEL);
    state.consume_fuel(fuel as u64)
}

/// Every field may be as wide as a number in the format says, or as all arguments together.
fn pay_for_format(state: &State, format: &str, args: &[Value]) -> Result<(), Error> {
    let numbers = format.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
    let mut printed = Counter { len: 0, limit: printable_bytes(state) };
    args.iter().try_for_each(|arg| write!(printed, "{arg}")).map_err(|_| out_of_fuel())?;
    pay_for_printing(state, printed.len)?;
    let fields = format.matches('{').count().saturating_mul(printed.len);
    state.consume_fuel((widths.saturating_add(fields) / BYTES_PER_FUEL) as u64)
}

/// Counts what is printed, up to a limit.
struct Counter {
    len: usize,
    limit: usize,
}

impl fmt::Write for Counter {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.len += text.len();
        if self.len <= self.limit { Ok(()) } else { Err(fmt::Error) }
    }
}
