//! Reads the whole command line from the stack of a core. NT_PRPSINFO has the start of it only, without the places where
//! arguments begin.

use crate::limits;
use crate::process::Memory;
use crate::process::facts::CommandLine;
use crate::process::notes::Notes;

/// The command line as it lies on the stack of the main thread. `None` if it is not certain where it lies.
///
/// The kernel puts there, from lower to higher addresses: the number of arguments, the addresses of the arguments, zero,
/// the addresses of the environment's variables, zero, the auxiliary vector, some random bytes (AT_RANDOM), the arguments,
/// the variables, and the name of the executable (AT_EXECFN).
pub(super) fn of(memory: &dyn Memory, notes: &Notes) -> Option<CommandLine> {
    let random = notes.auxv(libc::AT_RANDOM)?;
    let words = words_below(memory, random, limits::MAX_AUXV * 2 + 64);
    let vector = words.len().checked_sub(place_of(&notes.auxv, &words)?)?;
    // All words from the start of the vector downwards.
    let words = words_below(memory, random.checked_sub(vector as u64 * 8)?, limits::MAX_ARGUMENT_WORDS);
    let mut down = words.iter().rev().copied();
    down.next().filter(|&zero| zero == 0)?;
    let first_variable = down.by_ref().take_while(|&word| word != 0).last();
    let (mut start, mut count) = (0, 0);
    loop {
        match down.next()? {
            0 => return None,
            word if word == count => break,
            word => (start, count) = (word, count + 1),
        }
    }
    let end = first_variable.or_else(|| notes.auxv(libc::AT_EXECFN))?;
    let len = usize::try_from(end.checked_sub(start)?).ok()?;
    let mut bytes = vec![0; len.min(limits::MAX_COMMAND_LINE_BYTES)];
    memory.read(start, &mut bytes).ok()?;
    let line = CommandLine::of_arguments(&bytes, len > bytes.len())?;
    let CommandLine::Arguments { list, cut } = &line else { return None };
    // A program may have written something else there, as setproctitle does.
    let is_whole = *cut || (bytes.ends_with(&[0]) && list.len() as u64 == count);
    let agrees = match &notes.command_line {
        Some(CommandLine::Text { text, .. }) => {
            let spaced: Vec<u8> = bytes.iter().take(text.len()).map(|&c| if c == 0 { b' ' } else { c }).collect();
            String::from_utf8_lossy(&spaced) == *text
        }
        _ => false,
    };
    (is_whole && agrees).then_some(line)
}

/// Up to `most` words that lie below `address`, as many as can be read.
fn words_below(memory: &dyn Memory, address: u64, most: usize) -> Vec<u64> {
    let address = address & !7;
    let mut bytes = vec![0; most * 8];
    let mut from = bytes.len();
    // Page by page, because a stack begins somewhere.
    while from > 0 {
        let at = address.wrapping_sub((bytes.len() - from) as u64);
        let step = match at & 0xfff {
            0 => 0x1000,
            into => into as usize,
        };
        let step = step.min(from);
        let Some(start) = at.checked_sub(step as u64) else { break };
        if memory.read(start, &mut bytes[from - step..from]).is_err() {
            break;
        }
        from -= step;
    }
    bytes[from..].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// The index of the word at which a copy of the auxiliary vector begins.
fn place_of(auxv: &[(u64, u64)], words: &[u64]) -> Option<usize> {
    let pairs: Vec<u64> = auxv.iter().take(8).flat_map(|&(key, value)| [key, value]).collect();
    // Fewer are no proof.
    (pairs.len() >= 8).then(|| words.windows(pairs.len()).rposition(|window| window == pairs)).flatten()
}

#[cfg(test)]
mod tests {
    use crate::arch::{Machine, Registers};
    use crate::limits;
    use crate::process::Target;
    use crate::process::testing::CoreBuilder;

    const STACK: u64 = 0x7ffd_0000_0000;

    /// A core whose stack holds these arguments and variables, with `said` in NT_PRPSINFO.
    fn core(arguments: &[&str], variables: &[&str], said: &str, damage: impl FnOnce(&mut Vec<u64>)) -> Option<String> {
        const STRINGS: u64 = STACK + 0x1100;
        let mut strings = Vec::new();
        let mut put = |list: &[&str]| -> Vec<u64> {
            let mut one = |text: &&str| {
                let at = STRINGS + strings.len() as u64;
                strings.extend(text.bytes().chain([0]));
                at
            };
            list.iter().map(&mut one).collect()
        };
        let (argv, envp) = (put(arguments), put(variables));
        let name = put(&["/bin/app"])[0];
        let auxv = [(33, 0x1000), (16, 7), (6, 0x1000), (25, STACK + 0x1000), (31, name)];
        let pairs = auxv.iter().flat_map(|&(key, value)| [key, value]);
        let mut words: Vec<u64> =
            [argv.len() as u64].into_iter().chain(argv).chain([0]).chain(envp).chain([0]).collect();
        words.extend(pairs.chain([0, 0]));
        damage(&mut words);
        let below = STACK + 0x1000 - words.len() as u64 * 8;
        // A stack begins with a page.
        let start = below & !0xfff;
        let mut stack = vec![0; (below - start) as usize];
        stack.extend(words.into_iter().flat_map(u64::to_le_bytes));
        stack.resize(stack.len() + 0x100, 0x5a);
        stack.extend(strings);
        let registers = Registers::unknown(Machine::X64);
        let mut core = CoreBuilder::new().thread(7, 11, &registers, 0).process(7, "app", said).memory(start, 6, &stack);
        for (key, value) in auxv {
            core = core.auxv(key, value);
        }
        core.open().unwrap().facts().command_line.map(|line| line.text())
    }

    #[test]
    fn the_whole_command_line_is_on_the_stack() {
        let long = "x".repeat(100);
        let said = format!("app {long}");
        let whole = |said: &str| core(&["app", &long, "a b"], &["HOME=/root", "A=b"], said, |_| {});
        assert_eq!(whole(&said[..79]), Some(format!("app {long} 'a b'")));
        // What NT_PRPSINFO says is believed where the stack says something else.
        assert_eq!(whole("other"), Some("other".to_string()));
        assert_eq!(core(&["app", ""], &[], "app  ", |_| {}), Some("app ''".to_string()));
    }

    #[test]
    fn a_long_command_line_is_cut_and_too_many_variables_are_not_searched() {
        let said = format!("app {}", "x".repeat(75));
        let shown = |arguments: &[&str], variables: &[&str]| core(arguments, variables, &said, |_| {}).unwrap();
        let long = "x".repeat(limits::MAX_COMMAND_LINE_BYTES);
        assert_eq!(shown(&["app", &long], &["A=b"]).len(), limits::MAX_COMMAND_LINE_BYTES);
        let (x, many) = ("x".repeat(80), vec!["A=b"; limits::MAX_ARGUMENT_WORDS]);
        assert_eq!(shown(&["app", &x], &many[..100]), format!("app {x}"));
        assert_eq!(shown(&["app", &x], &many), said);
    }

    #[test]
    fn of_a_damaged_stack_the_note_is_left() {
        let arguments = ["app", "--flag", "a b"];
        for at in 0..20 {
            for value in [0, 1, 3, u64::MAX, STACK, STACK + 0x1104] {
                let line = core(&arguments, &["A=b"], "app --flag a b ", |words| {
                    if let Some(word) = words.get_mut(at) {
                        *word = value;
                    }
                });
                let line = line.unwrap();
                assert!(line == "app --flag 'a b'" || line == "app --flag a b", "{at} {value:#x}: {line}");
            }
        }
    }
}
