//! Tests of what is read from `/proc`.

use super::super::proc::strangers;
use super::*;

#[test]
fn pages_that_are_not_there_are_zero_in_private_memory_alone() {
    let maps = "\
10000-20000 rw-p 00000000 00:00 0
20000-30000 rw-p 00000000 00:00 0                        [anon:heap]
30000-40000 ---p 00000000 00:00 0
50000-60000 rw-s 00000000 00:01 153                      /dev/zero (deleted)
60000-70000 rw-s 00000000 00:01 154                      [anon_shmem:pool]
70000-80000 rw-p 00000000 fe:00 77                       /srv/data
80000-90000 rw-p 00000000 00:00 0                        [heap]
";
    let maps = parse_maps(maps.as_bytes());
    for (start, end, private) in [
        (0x10000, 0x20000, true),
        (0x18000, 0x30000, true),
        (0x10000, 0x30001, false),
        (0x30000, 0x40000, false),
        (0x0f000, 0x11000, false),
        (0x50000, 0x51000, false),
        (0x60000, 0x61000, false),
        (0x70000, 0x71000, false),
        (0x88000, 0x90000, true),
        (0x88000, 0x90001, false),
        (0xa0000, 0xb0000, false),
    ] {
        assert_eq!(are_private(&maps, start, end), private, "{start:#x}-{end:#x}");
    }
}

#[test]
fn threads_that_were_not_seen_are_told() {
    let peer = Peer::target();
    let live = peer.capture();
    assert!(strangers(peer.pid(), live.threads()).is_empty());
    let (last, rest) = live.threads().split_last().unwrap();
    assert_eq!(strangers(peer.pid(), rest), [last.id.0]);
}

#[test]
fn lines_of_maps() {
    let text = b"00400000-00401000 r-xp 00002000 08:02 17 /usr/bin/a b (deleted)\n\
        7ffe0000-7fff0000 rw-p 00000000 00:00 0                          [stack]\n\
        7fff1000-7fff2000 ---s 00000000 00:00 0 \nnonsense\n\
        7fff3000-7fff4000 r--p 00000000 08:02 17                         /x\\012y\n";
    let maps = parse_maps(text);
    let show: Vec<String> = maps
        .iter()
        .map(|m| format!("{:x} {:x} {}{}{} {:x} {:?}", m.start, m.end, m.read, m.write, m.execute, m.offset, m.path))
        .collect();
    assert_eq!(
        show,
        [
            "400000 401000 truefalsetrue 2000 Some(\"/usr/bin/a b (deleted)\")",
            "7ffe0000 7fff0000 truetruefalse 0 Some(\"[stack]\")",
            "7fff1000 7fff2000 falsefalsefalse 0 None",
            "7fff3000 7fff4000 truefalsefalse 0 Some(\"/x\\ny\")",
        ]
    );
}
