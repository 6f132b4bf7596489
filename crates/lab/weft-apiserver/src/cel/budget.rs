//! What one evaluation may take: rounds of loops, bytes that it makes, time, and how many evaluations there are at once.
//! The evaluator has no limits of its own, and one step of it can make a value of any size, so: every function is called through
//! [`guard`], which knows beforehand how large its answer can be; what else makes values larger (sums, lists, maps) is measured
//! by [`made`]. Bytes are counted over the whole evaluation and never given back: what is held at one time is less.

use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr};
use kube_cel::cel::objects::{Key, OptionalValue};
use kube_cel::cel::{Context, ExecutionError, FunctionContext, Value};
use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Rounds of all loops of one evaluation, and other steps that take about as long.
const MAX_ROUNDS: u64 = 1_000_000;
/// Bytes of all values that one evaluation makes.
const MAX_MADE: u64 = 32 << 20;
/// Time of one evaluation.
pub(super) const MAX_TIME: Duration = Duration::from_secs(5);
/// Evaluations at once; others wait their turn.
const MAX_AT_ONCE: usize = 4;
/// Longest URL in bytes: what it is taken apart into is not seen.
const MAX_URL: usize = 8 << 10;
/// Most digits behind the point of one number.
const MAX_PRECISION: u64 = 1000;
/// About what a value takes beside its text or items, in bytes.
const BASE: u64 = 64;

#[derive(Clone, Copy)]
struct Left {
    rounds: u64,
    bytes: u64,
    end: Option<Instant>,
}

thread_local! {
    /// What is left to the evaluation on this thread.
    static LEFT: Cell<Left> = const { Cell::new(Left { rounds: 0, bytes: 0, end: None }) };
    /// The functions themselves, without guards.
    static FUNCTIONS: Context<'static> = super::functions();
}

/// Begins an evaluation on this thread.
pub(super) fn begin() {
    LEFT.set(Left { rounds: MAX_ROUNDS, bytes: MAX_MADE, end: Some(Instant::now() + MAX_TIME) });
}

/// Takes from what is left. Once something is used up, so is all: an error that `||` swallows does not let others go on.
pub(super) fn spend(rounds: u64, bytes: u64) -> Result<(), ExecutionError> {
    let left = LEFT.get();
    let in_time = left.end.is_some_and(|end| Instant::now() < end);
    match (left.rounds.checked_sub(rounds), left.bytes.checked_sub(bytes)) {
        (Some(rounds), Some(bytes)) if in_time => {
            LEFT.set(Left { rounds, bytes, ..left });
            Ok(())
        }
        _ => {
            LEFT.set(Left { rounds: 0, bytes: 0, end: None });
            let why =
                "the expression takes more than it may on this object: bound the lists and texts that it goes through";
            Err(ExecutionError::function_error("limit", why))
        }
    }
}

/// A value that an expression has made. Plain numbers are as many as there are rounds; they are not counted.
pub(super) fn made(value: Value) -> Result<Value, ExecutionError> {
    let plain = matches!(value, Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) | Value::Null);
    let bytes = if plain { 0 } else { size(&value) };
    spend(bytes >> 10, bytes).map(|()| value)
}

/// About how many bytes a value takes, all that is in it included.
pub(super) fn size(value: &Value) -> u64 {
    let length = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    BASE + match value {
        Value::String(text) => length(text.len()),
        Value::Bytes(bytes) => length(bytes.len()),
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(map) => {
            let key = |key: &Key| if let Key::String(text) = key { BASE + length(text.len()) } else { BASE };
            map.map.iter().map(|(name, value)| key(name) + size(value)).sum()
        }
        Value::Opaque(other) => other.downcast_ref::<OptionalValue>().and_then(OptionalValue::value).map_or(BASE, size),
        _ => 0,
    }
}

/// Calls a function: refused when its answer could be larger, or take longer, than what is left.
pub(super) fn guard(name: &'static str, call: &FunctionContext<'_, '_>) -> Result<Value, ExecutionError> {
    let args = call.args.iter().map(|arg| call.ptx.resolve(arg)).collect::<Result<Vec<_>, _>>()?;
    let given: Vec<&Value> = call.this.iter().chain(&args).collect();
    let (rounds, bytes) = beforehand(name, &given)?;
    let before = LEFT.get();
    spend(rounds, bytes)?;
    let answer = FUNCTIONS.with(|functions| {
        let mut scope = functions.new_inner_scope();
        let leaf = |name: String| IdedExpr { id: 0, expr: Expr::Ident(name) };
        let mut names = Vec::with_capacity(args.len());
        for (at, value) in args.into_iter().enumerate() {
            scope.add_variable_from_value(format!("@{at}"), value);
            names.push(leaf(format!("@{at}")));
        }
        // `lists.range` is one name, that is written as if `lists` had a method.
        let (target, func_name) = match (name.split_once('.'), call.this.clone()) {
            (Some((prefix, name)), _) => (Some(prefix.to_string()), name),
            (None, Some(value)) => {
                scope.add_variable_from_value("@this", value);
                (Some("@this".to_string()), name)
            }
            (None, None) => (None, name),
        };
        let target = target.map(|name| Box::new(leaf(name)));
        let call = CallExpr { func_name: func_name.into(), target, args: names };
        Value::resolve(&IdedExpr { id: 0, expr: Expr::Call(call) }, &scope)
    })?;
    // What it could have been is given back for what it is.
    LEFT.set(Left { bytes: before.bytes, ..LEFT.get() });
    made(answer)
}

/// Rounds that a function takes, and bytes that it makes at most beyond what it is given.
fn beforehand(name: &str, given: &[&Value]) -> Result<(u64, u64), ExecutionError> {
    let sizes: Vec<u64> = given.iter().map(|value| size(value)).collect();
    let all: u64 = sizes.iter().sum();
    let text = |at: usize| if let Some(Value::String(text)) = given.get(at) { text.as_str() } else { "" };
    let length = |text: &str| u64::try_from(text.len()).unwrap_or(u64::MAX);
    let pieces = |of: &str, by: &str| u64::try_from(of.matches(by).count()).unwrap_or(u64::MAX).saturating_add(1);
    let of_size = |at: usize| sizes.get(at).copied().unwrap_or(0) / BASE;
    let bytes = match name {
        "lists.range" => match given {
            [Value::Int(count)] => u64::try_from(*count).unwrap_or(0).saturating_mul(BASE),
            _ => 0,
        },
        "replace" => pieces(text(0), text(1)).saturating_mul(length(text(2))),
        "join" => of_size(0).saturating_mul(length(text(1))),
        "split" => pieces(text(0), text(1)).saturating_mul(BASE * 2),
        "findAll" => length(text(0)).saturating_add(1).saturating_mul(BASE * 2),
        "format" => precisions(text(0)),
        "url" | "isURL" if length(text(0)) > MAX_URL as u64 => {
            return Err(ExecutionError::function_error(name, format!("a URL has at most {MAX_URL} bytes")));
        }
        _ => 0,
    };
    // These compare everything with everything.
    let pairs = match name {
        "distinct" => of_size(0).saturating_mul(of_size(0)),
        "sets.contains" | "sets.equivalent" | "sets.intersects" => of_size(0).saturating_mul(of_size(1)),
        _ => 0,
    };
    Ok(((all >> 10).saturating_add(pairs / 64), bytes.saturating_add(all)))
}

/// Digits that a format asks for: `%.3f` makes a number of three, `%.3e` too, however small what it is given. More than
/// [`MAX_PRECISION`] for one number is more than there is.
fn precisions(format: &str) -> u64 {
    let mut sum = 0_u64;
    let mut parts = format.split('%').skip(1);
    while let Some(part) = parts.next() {
        if part.is_empty() {
            // `%%` is a sign of percent; what follows it is text.
            parts.next();
            continue;
        }
        let digits: &str = part.strip_prefix('.').unwrap_or_default();
        let digits = &digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())];
        let digits = if digits.is_empty() { 0 } else { digits.parse().unwrap_or(u64::MAX) };
        sum = if digits > MAX_PRECISION { u64::MAX } else { sum.saturating_add(digits) };
    }
    sum
}

/// Does something that takes its time and memory: not on a thread that others wait for, and not with too many others.
pub(super) fn in_turn<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| waited(work)),
        _ => waited(work),
    }
}

fn waited<T>(work: impl FnOnce() -> T) -> T {
    static RUNNING: Mutex<usize> = Mutex::new(0);
    static ENDED: Condvar = Condvar::new();
    struct Turn;
    impl Drop for Turn {
        fn drop(&mut self) {
            *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            ENDED.notify_one();
        }
    }
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut running = ENDED.wait_while(running, |n| *n >= MAX_AT_ONCE).unwrap_or_else(PoisonError::into_inner);
    *running += 1;
    drop(running);
    let _turn = Turn;
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns() {
        let running = std::sync::atomic::AtomicUsize::new(0);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            for _ in 0..MAX_AT_ONCE * 4 {
                scope.spawn(|| {
                    waited(|| {
                        assert!(running.fetch_add(1, order) < MAX_AT_ONCE);
                        std::thread::yield_now();
                        running.fetch_sub(1, order);
                    });
                });
            }
        });
    }

    #[test]
    fn digits_that_a_format_asks_for() {
        for (format, digits) in [
            ("", 0),
            ("%s and %d", 0),
            ("%.3f %.20e, %.f", 23),
            ("100%%.5000", 0),
            ("%%%.5f", 5),
            ("%.1000f", 1000),
            ("%.1001f", u64::MAX),
            ("%.99999999999999999999999f%.1f", u64::MAX),
            ("%.1001f%.1f", u64::MAX),
            ("%", 0),
        ] {
            assert_eq!(precisions(format), digits, "{format}");
        }
    }

    #[test]
    fn sizes() {
        let text = |n: usize| Value::String(std::sync::Arc::new("a".repeat(n)));
        let list = |items: Vec<Value>| Value::List(std::sync::Arc::new(items));
        let optional = Value::Opaque(std::sync::Arc::new(OptionalValue::of(text(1000))));
        for (value, least) in [
            (text(1000), 1000),
            (list(vec![text(1000), text(1000)]), 2000),
            (list(vec![list(vec![list(vec![list(vec![text(1000)])])])]), 1000),
            (optional, 1000),
            (Value::Null, 1),
        ] {
            assert!(size(&value) >= least && size(&value) <= least + BASE * 6, "{value:?}: {}", size(&value));
        }
    }
}
