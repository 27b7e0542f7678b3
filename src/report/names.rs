//! Long names of functions as text shows them: without what is inside of generic parameters.

use std::borrow::Cow;

/// A pair of angle brackets in a name: the positions of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Position of `<`.
    pub open: usize,
    /// Position of `>`.
    pub close: usize,
    /// Number of pairs around this one.
    pub depth: usize,
}

/// The pairs of angle brackets in a demangled name of Rust or C++, in the order of their `<`. Arrows, names of operators and
/// brackets that nothing closes are no pairs.
pub fn pairs(name: &str) -> Vec<Pair> {
    let bytes = name.as_bytes();
    let mut open: Vec<(u8, usize)> = Vec::new();
    // How many brackets of each kind are open, so that one without a partner takes no search.
    let mut opened = [0_usize; 256];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let operator = operator(bytes, at);
        if operator != 0 {
            at += operator;
            continue;
        }
        match byte {
            b'<' | b'(' | b'[' | b'{' => {
                open.push((byte, at));
                opened[usize::from(byte)] += 1;
            }
            b'>' if at > 0 && bytes[at - 1] == b'-' => {}
            b'>' => {
                if let Some(&(b'<', start)) = open.last() {
                    open.pop();
                    opened[usize::from(b'<')] -= 1;
                    found.push(Pair { open: start, close: at, depth: 0 });
                }
            }
            b')' | b']' | b'}' => {
                let partner = match byte {
                    b')' => b'(',
                    b']' => b'[',
                    _ => b'{',
                };
                // What was opened inside and is not closed here never is: a comparison, or a damaged name.
                while opened[usize::from(partner)] > 0 {
                    let Some((kind, _)) = open.pop() else { break };
                    opened[usize::from(kind)] -= 1;
                    if kind == partner {
                        break;
                    }
                }
            }
            _ => {}
        }
        at += 1;
    }
    found.sort_unstable_by_key(|pair| pair.open);
    set_depths(&mut found);
    found
}

/// Counts the pairs around each pair, which can be told only now: a `<` that nothing closes is around none.
fn set_depths(pairs: &mut [Pair]) {
    let mut around: Vec<usize> = Vec::new();
    for pair in pairs {
        while around.last().is_some_and(|close| *close < pair.open) {
            around.pop();
        }
        pair.depth = around.len();
        around.push(pair.close);
    }
}

/// The number of bytes of `operator<<` and the like at `at`, or 0.
fn operator(bytes: &[u8], at: usize) -> usize {
    const WORD: &[u8] = b"operator";
    const SIGNS: [&[u8]; 11] = [b"<=>", b"<<=", b">>=", b"->*", b"<<", b">>", b"<=", b">=", b"->", b"<", b">"];
    let begins = at == 0 || !is_identifier(bytes[at - 1]);
    let Some(rest) = bytes[at..].strip_prefix(WORD).filter(|_| begins) else { return 0 };
    SIGNS.iter().find(|sign| rest.starts_with(sign)).map_or(0, |sign| WORD.len() + sign.len())
}

fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// Whether a pair holds arguments of the name before it, as in `Vec<u8>` and `call::<F>`. If it does not, it holds a type
/// itself, as in `<T as Trait>::call`.
fn holds_arguments(name: &str, pair: &Pair) -> bool {
    let before = pair.open.checked_sub(1).map(|at| name.as_bytes()[at]);
    before.is_some_and(|byte| is_identifier(byte) || matches!(byte, b':' | b'}' | b']'))
}

/// What stands for something that was cut.
const CUT: &str = "..";

/// The name, if it has at most `width` characters. If not, first the innermost generic arguments are cut, then those
/// around them, until the name fits; of several that are equally deep the longest goes first. If that is not enough, what
/// is left between angle brackets loses the middles of its paths, its trait, and at last all. What is outside of angle
/// brackets stays. The work grows with the length of the name alone.
pub fn short(name: &str, width: usize) -> Cow<'_, str> {
    if columns(name) <= width {
        return Cow::Borrowed(name);
    }
    let mut text = without_arguments(name, width);
    for cut in [without_middles, without_traits, without_types] {
        if columns(&text) <= width {
            break;
        }
        text = cut(&text);
    }
    Cow::Owned(text)
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

/// Writes `text` with each of the stretches, which do not overlap and are in order, replaced by [`CUT`].
fn cut(text: &str, stretches: impl IntoIterator<Item = (usize, usize)>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (start, end) in stretches {
        out.push_str(&text[at..start]);
        out.push_str(CUT);
        at = end;
    }
    out.push_str(&text[at..]);
    out
}

fn without_arguments(name: &str, width: usize) -> String {
    // The number of characters before each byte.
    let mut before = Vec::with_capacity(name.len());
    let mut characters = 0;
    for byte in name.bytes() {
        before.push(characters);
        characters += usize::from(byte & 0xc0 != 0x80);
    }
    let mut levels: Vec<Vec<(usize, Pair)>> = Vec::new();
    let mut around: Vec<usize> = Vec::new();
    for pair in pairs(name) {
        if !holds_arguments(name, &pair) {
            continue;
        }
        while around.last().is_some_and(|close| *close < pair.open) {
            around.pop();
        }
        if levels.len() == around.len() {
            levels.push(Vec::new());
        }
        let inside = before[pair.close] - before[pair.open] - 1;
        if inside > CUT.len() {
            levels[around.len()].push((inside - CUT.len(), pair));
        }
        around.push(pair.close);
    }
    let Some(outermost) = levels.first() else { return name.to_string() };
    let too_much = characters.saturating_sub(width);
    let saves = |level: &&Vec<(usize, Pair)>| level.iter().map(|(saved, _)| saved).sum::<usize>() >= too_much;
    let mut level = levels.iter().rev().find(saves).unwrap_or(outermost).clone();
    level.sort_by_key(|(saved, _)| std::cmp::Reverse(*saved));
    let mut saved = 0;
    let needed = level.iter().take_while(|(this, _)| {
        let more = saved < too_much;
        saved += this;
        more
    });
    let mut stretches: Vec<(usize, usize)> = needed.map(|(_, pair)| (pair.open + 1, pair.close)).collect();
    stretches.sort_unstable();
    cut(name, stretches)
}

/// `<a::b::c::T as d::e::U>` as `<a::..::T as d::..::U>`.
fn without_middles(name: &str) -> String {
    let mut stretches = Vec::new();
    let in_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '{' | '}' | '#');
    for pair in pairs(name).iter().filter(|pair| pair.depth == 0) {
        let mut at = pair.open + 1;
        let inside = &name[at..pair.close];
        for path in inside.split_inclusive(|c| !in_path(c)) {
            let words = path.trim_end_matches(|c| !in_path(c)).trim_end_matches("::");
            if let (Some((first, _)), Some((before, _))) = (words.split_once("::"), words.rsplit_once("::")) {
                let (start, end) = (first.len() + 2, before.len());
                if !first.is_empty() && end > start + CUT.len() {
                    stretches.push((at + start, at + end));
                }
            }
            at += path.len();
        }
    }
    cut(name, stretches)
}

/// `<T as U>` as `<T as ..>`.
fn without_traits(name: &str) -> String {
    const AS: &str = " as ";
    let all = pairs(name);
    let mut stretches = Vec::new();
    for (n, pair) in all.iter().enumerate().filter(|(_, pair)| pair.depth == 0) {
        // What is inside of inner pairs is not of this one.
        let mut at = pair.open + 1;
        let inner = all[n + 1..].iter().take_while(|inner| inner.open < pair.close).filter(|inner| inner.depth == 1);
        let ends = inner.map(|inner| (inner.open, inner.close + 1)).chain([(pair.close, pair.close)]);
        for (end, next) in ends {
            if let Some(found) = name[at..end].find(AS) {
                let start = at + found + AS.len();
                if pair.close > start + CUT.len() {
                    stretches.push((start, pair.close));
                }
                break;
            }
            at = next;
        }
    }
    cut(name, stretches)
}

/// `<T>` as `<..>`.
fn without_types(name: &str) -> String {
    let all = pairs(name);
    let outermost = all.iter().filter(|pair| pair.depth == 0 && pair.close > pair.open + 1 + CUT.len());
    cut(name, outermost.map(|pair| (pair.open + 1, pair.close)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    #[test]
    fn pairs_are_what_closes_what_it_opened() {
        let found = |name: &str| -> Vec<String> {
            pairs(name).iter().map(|p| format!("{}{}", p.depth, &name[p.open..=p.close])).collect()
        };
        assert_eq!(found("a<b<c>, d>::e<f>"), ["0<b<c>, d>", "1<c>", "0<f>"]);
        assert_eq!(found("<F as Fn(A) -> B>::call"), ["0<F as Fn(A) -> B>"]);
        assert_eq!(found("ns::operator< <int>(a<b> const&)"), ["0<int>", "0<b>"]);
        assert_eq!(found("operator<<(std::ostream&, x<y>)"), ["0<y>"]);
        assert_eq!(found("a::operator-><b>()"), ["0<b>"]);
        assert_eq!(found("f<(1<2)>"), ["0<(1<2)>"]);
        assert_eq!(found("f<(1>2)>"), ["0<(1>2)>"]);
        assert_eq!(found("my_operator<a>"), ["0<a>"]);
        for none in ["", "a", "<", ">", "a<b", "a>b", "><", "operator<", "operator<<", "f(<)>", "->", "a<b)", "]]]"] {
            assert_eq!(found(none), [""; 0], "{none}");
        }
        assert_eq!(found("a<b<c>"), ["0<c>"], "the first bracket has no partner, and is around nothing");
    }

    #[test]
    fn the_innermost_and_the_longest_go_first() {
        let rows = [
            ("app::main", 100, "app::main"),
            ("a::b<c<dddddd>, e>::f", 20, "a::b<c<..>, e>::f"),
            ("a::b<c<dddddd>, e>::f", 14, "a::b<..>::f"),
            ("call<aaaa>::b<cccccccccc>", 21, "call<aaaa>::b<..>"),
            ("call_once<fn(), ()>", 18, "call_once<..>"),
            ("{closure#0}<host::State, core::X>", 20, "{closure#0}<..>"),
            ("a::catch::<i32, b::c::D<e>>", 20, "a::catch::<..>"),
            ("<a::b::c::Dd as e::f::g::H<i>>::call", 33, "<a::..::Dd as e::..::H<i>>::call"),
            ("<a::b::c::Dd as e::f::g::Hhhhhh>::call", 30, "<a::..::Dd as ..>::call"),
            ("<a::b::c::Dd as e::f::g::Hhhhhh>::call", 20, "<..>::call"),
            ("<[a<b as c>; 4] as dddddd::eeeee>::f", 22, "<[a<..>; 4] as ..>::f"),
            ("std::vector<std::pair<int, char> >::push(int)", 40, "std::vector<std::pair<..> >::push(int)"),
            (
                "std::operator<< <char>(std::basic_ostream<char, x>&)",
                50,
                "std::operator<< <char>(std::basic_ostream<..>&)",
            ),
            ("a_name_that_has_no_brackets", 10, "a_name_that_has_no_brackets"),
            ("unbalanced<aaaaaaaaaaaaaaaaa", 10, "unbalanced<aaaaaaaaaaaaaaaaa"),
        ];
        for (name, width, expected) in rows {
            assert_eq!(short(name, width), expected, "{name} in {width}");
        }
    }

    #[test]
    fn names_of_a_real_stack_keep_what_tells_them_apart() {
        let rows = [
            (
                "<&dyn core::ops::function::Fn<(), Output = i32> + core::marker::Sync + \
                 core::panic::unwind_safe::RefUnwindSafe as core::ops::function::FnOnce<()>>::call_once",
                "<&dyn core::..::Fn<..> + core::..::Sync + core::..::RefUnwindSafe as ..>::call_once",
            ),
            (
                "<wasmer_singlepass_backend_near::codegen_x64::X64ExecutionContext as \
                 wasmer_runtime_core_near::backend::RunnableModule>::get_trampoline::invoke::{{closure}}",
                "<wasmer_singlepass_backend_near::..::X64ExecutionContext as ..>::get_trampoline::invoke::{{closure}}",
            ),
            (
                "call_unchecked<&mut wasmtime::runtime::store::context::StoreContextMut<host_wasmtime::truth::State>> of it",
                "call_unchecked<&mut wasmtime::runtime::store::context::StoreContextMut<..>> of it",
            ),
        ];
        for (name, expected) in rows {
            let shown = short(name, 100);
            assert!(columns(&shown) <= 100, "{shown}");
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn hostile_names_take_time_that_grows_with_their_length_alone() {
        let began = Instant::now();
        let n = 1 << 18;
        for part in
            ["<", ">", "a<", "<a>", "<(", ")", "<(<)", "a<b>::", "operator<", " as ", "<a as ", "::", "->", "é<"]
        {
            let name = part.repeat(n / part.len());
            assert!(short(&name, 100).len() <= name.len());
        }
        let nested = format!("{}{}", "a<".repeat(n / 3), ">".repeat(n / 3));
        assert!((90..=100).contains(&short(&nested, 100).len()));
        // Work that grows with the square of the length would take minutes.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }

    /// A name as compilers make them: every bracket is closed.
    fn balanced() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            "[a-z]{1,12}(::[A-Zé]{1,8}){0,3}",
            Just("{closure#0}".to_string()),
            Just("fn() -> i32".to_string()),
        ];
        leaf.prop_recursive(5, 60, 4, |inner| {
            prop_oneof![
                ("[a-z]{1,9}(::)?", proptest::collection::vec(inner.clone(), 1..4))
                    .prop_map(|(name, arguments)| format!("{name}<{}>", arguments.join(", "))),
                (inner.clone(), inner.clone(), "[a-z]{1,9}").prop_map(|(a, b, c)| format!("<{a} as {b}>::{c}")),
                (inner.clone(), inner).prop_map(|(a, b)| format!("{a}::{b}")),
            ]
        })
    }

    fn is_balanced(name: &str) -> bool {
        let mut depth = 0_i64;
        let signs = name.replace("->", "");
        signs.chars().all(|c| {
            depth += i64::from(c == '<') - i64::from(c == '>');
            depth >= 0
        }) && depth == 0
    }

    proptest! {
        #[test]
        fn any_text_gets_no_longer_and_one_that_fits_stays(
            name in "([<>(){}]|->|operator|<<| as |::|[a-zé]{1,4}|,| ){0,60}", width in 0_usize..120
        ) {
            let shown = short(&name, width);
            prop_assert!(columns(&shown) <= columns(&name), "{name}: {shown}");
            if columns(&name) <= width {
                prop_assert_eq!(&shown, &name);
            }
            // What was shortened to a width is not shortened again.
            if columns(&shown) <= width {
                prop_assert_eq!(short(&shown, width), shown.clone());
            }
        }

        #[test]
        fn balanced_names_stay_balanced(name in balanced(), width in 1_usize..120) {
            prop_assert!(is_balanced(&name));
            let shown = short(&name, width);
            prop_assert!(is_balanced(&shown), "{name}: {shown}");
            prop_assert!(columns(&shown) <= columns(&name));
        }
    }
}
