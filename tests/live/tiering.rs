//! Several versions of one module on one stack: frames of both in turns, and the registers that the runtime keeps where it
//! enters an optimized one.
//!
//! The stand-in for an optimizing tier is a second compilation that is known as optimized. It does save the registers that it
//! uses, so that every value is known from the program's text, and what the runtime makes of the boundary can be told from it.

use crate::support::{Host, Profile, Stopped, kernel_core, wstate};
use wstate::report::{Frame, FrameKind, Report};
use wstate::session::{Options, Outcome, Session, Source};
use wstate::state::{ExecutionStateImage, WasmFunctionStateDump};

/// Locals and operand of the function at depth `n`: `high` where that is even.
fn program(n: u64) -> (Vec<u64>, Vec<u64>) {
    let m = n * 0x0101_0101_0101_0101;
    let (x, part, wide, operand) = match n % 2 {
        0 => (3 * n + 7, 0.5, 5, 2000),
        _ => (5 * n + 11, 0.25, 9, 3000),
    };
    (vec![n, m, x, (n as f64 + part).to_bits(), m.wrapping_mul(wide)], vec![n + operand])
}

fn ask(source: &Source, stopped: &Stopped) -> Outcome {
    let mut options = Options::new(source.clone());
    (options.image, options.threads) = (true, vec![stopped.tid as u32]);
    Session::open(&options).and_then(|session| session.stacks()).unwrap_or_else(|e| panic!("{source:?}: {e}"))
}

/// The Wasm frames that are displayed have the program's values, and are of both versions in turns.
fn assert_displayed(report: &Report) {
    let frames = report.threads.iter().flat_map(|t| &t.frames);
    let frames: Vec<&Frame> = frames.filter(|f| f.kind == FrameKind::Wasm).collect();
    assert_eq!(frames.len(), 8);
    let module = |f: &Frame| f.wasm.as_ref().and_then(|w| w.module_index).expect("a module");
    let (second, first) = (module(frames[0]), module(frames[1]));
    assert_ne!(first, second);
    for (n, frame) in frames[..7].iter().enumerate() {
        assert_eq!(module(frame), if n % 2 == 0 { second } else { first }, "frame {n}");
        let bits = |values: &Option<Vec<wstate::report::Value>>| -> Vec<u64> {
            let values = values.as_ref().expect("values").iter();
            values.map(|v| u64::try_from(v.bits.expect("a value").0).expect("64 bits")).collect()
        };
        let (locals, mut stack) = (bits(&frame.locals), bits(&frame.stack));
        // A call through the table has its number there too.
        stack.truncate(1);
        assert_eq!((locals, stack), program(n as u64), "frame {n}");
    }
    assert_eq!(module(frames[7]), first);
}

fn values(dump: &WasmFunctionStateDump) -> Option<(Vec<u64>, Vec<u64>)> {
    let all = |values: &[Option<u64>]| values.iter().copied().collect::<Option<Vec<u64>>>();
    Some((all(&dump.locals)?, all(&dump.stack)?))
}

/// Which of the frames of an image have the program's values.
fn right(image: &ExecutionStateImage) -> Vec<bool> {
    assert_eq!(image.frames.len(), 8);
    image.frames[..7].iter().zip(0..).map(|(frame, n)| values(frame) == Some(program(n))).collect()
}

fn for_each_target(stop: &str, profile: Profile, check: impl Fn(&Source, &Stopped, &[u8])) {
    let host = Host::start(stop, &[], profile);
    let truth = host.truth().expect("the runtime has an answer").image;
    check(&Source::Pid(host.pid() as u32), &host.ready, &truth);
    let core = kernel_core(stop, &[], profile).expect("the kernel writes cores here");
    let truth = core.truth().expect("the runtime has an answer").image;
    check(&Source::Core { core: core.path.clone(), executable: None }, &core.ready, &truth);
}

#[test]
fn frames_of_two_versions_in_turns_are_read() {
    for profile in [Profile::Debug, Profile::Stripped] {
        for_each_target("tiering-alternating", profile, |source, stopped, truth| {
            let outcome = ask(source, stopped);
            assert_displayed(&outcome.report);
            assert_eq!(outcome.image.as_deref(), Some(truth), "{profile}, {source:?}");
            let image = ExecutionStateImage::from_bytes(truth).expect("the runtime's image");
            assert_eq!(right(&image), [true; 7]);
        });
    }
}

/// The runtime keeps the registers of one boundary, the last that was crossed: below an older one it reports those too.
/// An image is what the runtime reports; frames are displayed as they are.
#[test]
fn registers_of_the_last_boundary_are_the_runtimes_answer_for_all() {
    for profile in [Profile::Debug, Profile::Release] {
        for_each_target("tiering-alternating-boundary", profile, |source, stopped, truth| {
            let outcome = ask(source, stopped);
            assert_displayed(&outcome.report);
            assert_eq!(outcome.image.as_deref(), Some(truth), "{profile}, {source:?}");
            // high(0) and low(1) are right: the last boundary is theirs. Below low(3) and low(5) it is not.
            let image = ExecutionStateImage::from_bytes(truth).expect("the runtime's image");
            let right = right(&image);
            assert_eq!((&right[..3], right[3], right[5]), (&[true; 3][..], false, false), "{right:?}");
        });
    }
}

/// Without the runtime's thread-local, frames that save what they use have their own values.
#[test]
fn without_the_boundary_values_are_those_of_the_frames() {
    for_each_target("tiering-alternating-boundary", Profile::Stripped, |source, stopped, _| {
        let outcome = ask(source, stopped);
        assert_displayed(&outcome.report);
        let image = ExecutionStateImage::from_bytes(&outcome.image.expect("an image")).expect("an image of ours");
        assert_eq!(right(&image), [true; 7], "{source:?}");
    });
}

#[test]
fn a_snapshot_with_values_of_another_boundary_cannot_be_gone_on_from() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image");
    let snapshot = |stop: &str| {
        let host = Host::start(stop, &[], Profile::Debug);
        let pid = host.pid().to_string();
        let done = wstate(&["snapshot", "-p", &pid, "-o", path.to_str().expect("text")]);
        let truth = host.truth().and_then(|t| t.instance).expect("the runtime has an answer");
        assert!(std::fs::read(&path).expect("an image") == truth);
        (done.status.code(), String::from_utf8(done.stdout).expect("text"))
    };
    let (code, said) = snapshot("tiering-boundary");
    assert!(code == Some(0) && said.contains("resumable: behind a call"), "{code:?} {said}");
    let (code, said) = snapshot("tiering-alternating-boundary");
    assert!(
        code == Some(1) && said.contains("resumable: no: local 0 of frame 3 is 0x3, but 0x1 in the image"),
        "{said}"
    );
}
