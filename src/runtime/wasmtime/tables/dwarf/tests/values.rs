//! Values of variables: where they can be, of which types they can be, and in which scopes they are seen.

use gimli::write::{Location, LocationList, Range, RangeList};

use super::*;

fn frame_address() -> Expression {
    let mut base = Expression::new();
    base.op(gimli::DW_OP_call_frame_cfa);
    base
}

#[test]
fn kinds_of_places() {
    let mut it = Synthetic::new("clang", Some(frame_address()));
    let (int, double, wide) =
        (it.int, it.base("double", 8, gimli::DW_ATE_float), it.base("__int128", 16, gimli::DW_ATE_signed));
    it.at("register", |e| e.op_reg(RBX));
    it.at("missing", |e| e.op_reg(R9));
    it.at("odd", |e| e.op_reg(gimli::Register(70)));
    it.at("at_register", |e| e.op_breg(RAX, 4));
    it.at("based", |e| e.op_fbreg(-0x20));
    it.at("above", |e| e.op_fbreg(8));
    it.at("own_frame", |e| {
        e.op(gimli::DW_OP_call_frame_cfa);
        e.op_consts(-0x40);
        e.op(gimli::DW_OP_plus);
    });
    it.at("computed", |e| {
        e.op_breg(RAX, 0);
        e.op_deref_size(4);
        e.op_constu(3);
        e.op(gimli::DW_OP_plus);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("typed", |e| {
        e.op_deref_type(4, int);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("typed_twice", |e| {
        e.op_breg(RAX, 0);
        e.op_deref_type(4, int);
        e.op_const_type(int, Box::new(1u32.to_le_bytes()));
        e.op(gimli::DW_OP_minus);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("pieces", |e| {
        e.op_reg(RBX);
        e.op_piece(1);
        e.op_breg(RAX, 4);
        e.op_piece(3);
    });
    it.at("half", |e| {
        e.op_reg(RBX);
        e.op_piece(2);
        e.op_piece(2);
    });
    it.at("too_few", |e| {
        e.op_reg(RBX);
        e.op_piece(2);
    });
    it.at("bits", |e| {
        e.op_reg(RBX);
        e.op_bit_piece(12, 0);
    });
    it.at("constant", |e| e.op_implicit_value(Box::new(77u32.to_le_bytes())));
    it.at("nothing", |_| {});
    it.at("fixed", |e| e.op_addr(Address::Constant(0x400)));
    it.at("far", |e| e.op_constu(0x99_0000));
    it.at("local", |e| {
        e.op_wasm_local(3);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("entry", |e| {
        let mut inner = Expression::new();
        inner.op_reg(RBX);
        e.op_entry_value(inner);
        e.op(gimli::DW_OP_stack_value);
    });
    it.at("endless", |e| {
        e.op(gimli::DW_OP_nop);
        let back = e.op_skip();
        e.set_target(back, 0);
    });
    it.at("broken", |e| e.op(gimli::DW_OP_plus));
    let mut vector = Expression::new();
    vector.op_reg(XMM1);
    it.variable("vector", double, Write::Exprloc(vector.clone()));
    it.variable("whole_vector", wide, Write::Exprloc(vector));
    let function = it.function;
    let value = (gimli::DW_AT_const_value, Write::Sdata(-9));
    it.entry(function, gimli::DW_TAG_formal_parameter, vec![named("known"), of_type(int), value]);
    it.entry(function, gimli::DW_TAG_variable, vec![named("gone"), of_type(int)]);
    it.entry(function, gimli::DW_TAG_variable, vec![named("untyped")]);
    it.at("__vmctx", |e| e.op_reg(RAX));
    let dwarf = it.finish();
    assert_eq!(
        stopped(&dwarf, 0x150),
        [
            "int register = -7 @ rbx",
            "int missing: register r9 is not known in this frame",
            "int odd: it is in DWARF register 70, which wstate does not read",
            "int at_register = 67305985 @ [0x1004]",
            "int based = 24 @ [fp-0x10]",
            "int above = 34 @ [fp+0x18]",
            "int own_frame = 16 @ [fp-0x30]",
            "int computed = 1 @ computed",
            "int typed: the debug information is broken: expression stack underflow",
            "int typed_twice = -3 @ computed",
            "int pieces = 50463225 @ rbx:1 [0x1004]:3",
            "int half: parts of it are optimized out here",
            "int too_few: only a part of it is described",
            "int bits: it is in pieces that are not whole bytes",
            "int constant = 77 @ constant",
            "int nothing: optimized out here",
            "int fixed: its place is described with a fixed address",
            "int far: memory at 0x990000 is not readable",
            "int local: its place is described with a local that was not translated",
            "int entry: optimized out: only its value at the call is described",
            "int endless: the debug information is broken: exceeded maximum expression iterations",
            "int broken: the debug information is broken: expression stack underflow",
            "double vector = 2.5 @ xmm1",
            "__int128 whole_vector: it is larger than what is known of xmm1",
            "int known = -9 @ constant",
            "int gone: optimized out: no place is described",
            "- untyped: its type is not described",
        ]
    );
    let known = registers(&[(x64::RAX, 0x4242)]);
    let memory = SliceMemory::new(0, &[]);
    assert_eq!(dwarf.vmctx(0x150, &known, None, &memory), Some(0x4242));
    let unknown = lines(&dwarf.variables(0x150, &known, None, &memory));
    assert_eq!(unknown[4], "int based: the address of this frame is not known");
    assert_eq!(dwarf.frames(0x150)[0].function.as_deref(), Some("foo::bar()"));
    assert!(stopped(&dwarf, 0xff).is_empty() && stopped(&dwarf, 0x200).is_empty());
}

#[test]
fn frame_bases() {
    let mut by_register = Expression::new();
    by_register.op_reg(gimli::Register(7));
    let mut by_itself = Expression::new();
    by_itself.op_fbreg(0);
    for (base, expected) in [
        // Functions that Wasmtime describes itself have no frame base.
        (None, "int x = 24 @ [fp-0x10]"),
        (Some(by_register), "int x: memory at 0x7f60 is not readable"),
        (Some(by_itself), "int x: its place is described with a frame base that refers to itself"),
    ] {
        let mut it = Synthetic::new("wasmtime", base);
        it.at("x", |e| e.op_fbreg(-0x20));
        let dwarf = it.finish();
        assert_eq!(stopped(&dwarf, 0x150), [expected]);
        assert!(dwarf.frames(0x150)[0].generated);
    }
}

#[test]
fn places_depend_on_the_address() {
    for based in [false, true] {
        let mut it = Synthetic::new("clang", None);
        let mut register = Expression::new();
        register.op_reg(RBX);
        let mut frame = Expression::new();
        frame.op_fbreg(-0x20);
        let list = if based {
            let pair = |begin, end, data| Location::OffsetPair { begin, end, data };
            let base = Location::BaseAddress { address: Address::Constant(BIAS + 0x100) };
            vec![base, pair(0x10, 0x20, register), pair(0x20, 0x30, frame)]
        } else {
            let begin = |at| Address::Constant(BIAS + at);
            let entry = |at, data| Location::StartLength { begin: begin(at), length: 0x10, data };
            vec![entry(0x110, register), entry(0x120, frame)]
        };
        let list = it.dwarf.unit.locations.add(LocationList(list));
        it.variable("x", it.int, Write::LocationListRef(list));
        let dwarf = it.finish();
        assert_eq!(stopped(&dwarf, 0x10f), ["int x: optimized out here"]);
        assert_eq!(stopped(&dwarf, 0x110), ["int x = -7 @ rbx"]);
        assert_eq!(stopped(&dwarf, 0x11f), ["int x = -7 @ rbx"]);
        assert_eq!(stopped(&dwarf, 0x120), ["int x = 24 @ [fp-0x10]"]);
        assert_eq!(stopped(&dwarf, 0x130), ["int x: optimized out here"]);
    }
}

#[test]
fn blocks_and_inlined_functions() {
    let mut it = Synthetic::new("clang", None);
    let (function, int) = (it.function, it.int);
    let root = it.dwarf.unit.root();
    let one = |n| (gimli::DW_AT_const_value, Write::Udata(n));
    let origin = it.entry(root, gimli::DW_TAG_subprogram, vec![named("inner")]);
    let parameter = it.entry(origin, gimli::DW_TAG_formal_parameter, vec![named("p"), of_type(int)]);
    let of = |id| (gimli::DW_AT_abstract_origin, Write::UnitRef(id));

    let block = it.entry(function, gimli::DW_TAG_lexical_block, covers(0x110, 0x10));
    it.entry(block, gimli::DW_TAG_variable, vec![named("in_block"), of_type(int), one(1)]);
    let ranges = [(0x140, 0x10), (0x160, 0x10)];
    let ranges = ranges.map(|(at, length)| Range::StartLength { begin: Address::Constant(BIAS + at), length });
    let ranges = it.dwarf.unit.ranges.add(RangeList(ranges.to_vec()));
    let ranges = (gimli::DW_AT_ranges, Write::RangeListRef(ranges));
    let call = (gimli::DW_AT_call_line, Write::Udata(33));
    let inlined = it.entry(function, gimli::DW_TAG_inlined_subroutine, vec![of(origin), ranges, call]);
    it.entry(inlined, gimli::DW_TAG_formal_parameter, vec![of(parameter), one(2)]);
    let nested = it.entry(inlined, gimli::DW_TAG_inlined_subroutine, covers(0x164, 4));
    it.entry(nested, gimli::DW_TAG_variable, vec![named("deepest"), of_type(int), one(3)]);
    it.entry(inlined, gimli::DW_TAG_variable, vec![named("behind"), of_type(int), one(4)]);
    it.entry(function, gimli::DW_TAG_variable, vec![named("last"), of_type(int), one(5)]);
    let unknown_block = it.entry(function, gimli::DW_TAG_lexical_block, vec![]);
    it.entry(unknown_block, gimli::DW_TAG_variable, vec![named("nowhere"), of_type(int), one(6)]);
    let dwarf = it.finish();

    let names = |at| {
        let scopes = dwarf.scoped_variables(at, &Registers::unknown(Machine::X64), None, &SliceMemory::new(0, &[]));
        let names = |v: Vec<SourceVariable>| v.into_iter().map(|v| v.name).collect::<Vec<_>>();
        scopes.into_iter().map(names).collect::<Vec<_>>()
    };
    assert_eq!(names(0x100), [vec!["last"]]);
    assert_eq!(names(0x110), [vec!["in_block", "last"]]);
    assert_eq!(names(0x150), [vec!["last"]]);
    assert_eq!(names(0x14f), [vec!["p", "behind"], vec!["last"]]);
    assert_eq!(names(0x164), [vec!["deepest"], vec!["p", "behind"], vec!["last"]]);
    let frames = dwarf.frames(0x14f);
    assert_eq!((frames[0].function.as_deref(), frames[0].inlined), (Some("inner"), true));
    assert_eq!((frames[1].function.as_deref(), frames[1].line), (Some("foo::bar()"), Some(33)));
}

#[test]
fn kinds_of_types() {
    let mut it = Synthetic::new("clang", None);
    let int = it.int;
    let tag = |it: &mut Synthetic, parent, tag, attributes| it.entry(parent, tag, attributes);
    for (name, size, encoding, bytes) in [
        ("unsigned int", 4, gimli::DW_ATE_unsigned, &[0xff; 4][..]),
        ("_Bool", 1, gimli::DW_ATE_boolean, &[1]),
        ("bad bool", 1, gimli::DW_ATE_boolean, &[7]),
        ("char", 1, gimli::DW_ATE_signed_char, b"a"),
        ("signed char", 1, gimli::DW_ATE_signed_char, &[0xff]),
        ("char32_t", 4, gimli::DW_ATE_UTF, &[0xac, 0x20, 0, 0]),
        ("float", 4, gimli::DW_ATE_float, &[0, 0, 0xc0, 0x3f]),
        ("double", 8, gimli::DW_ATE_float, &[0, 0, 0, 0, 0, 0, 0xf8, 0x7f]),
        ("long long", 8, gimli::DW_ATE_signed, &[0xff; 8]),
        (
            "__int128",
            16,
            gimli::DW_ATE_signed,
            &[0xfe, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ),
        ("()", 0, gimli::DW_ATE_unsigned, &[]),
    ] {
        let ty = it.base(name, size, encoding);
        it.constant("x", ty, bytes);
    }
    // A pointer of the guest, and one of the process.
    let short = it.base("short", 2, gimli::DW_ATE_signed);
    let constant = it.ty(gimli::DW_TAG_const_type, vec![], Some(short));
    let wrapper =
        it.ty(gimli::DW_TAG_structure_type, vec![named("WebAssemblyPtrWrapper<const short>"), sized(4)], None);
    tag(&mut it, wrapper, gimli::DW_TAG_template_type_parameter, vec![named("T"), of_type(constant)]);
    it.constant("guest", wrapper, &0x1_0410u32.to_le_bytes());
    let void = it.ty(gimli::DW_TAG_structure_type, vec![named("WebAssemblyPtrWrapper<??>"), sized(4)], None);
    tag(&mut it, void, gimli::DW_TAG_template_type_parameter, vec![named("T")]);
    it.constant("void_guest", void, &[0; 4]);
    let own = it.ty(gimli::DW_TAG_pointer_type, vec![], Some(int));
    it.constant("own", own, &0x7fff_0000_1000u64.to_le_bytes());
    // Names for types.
    let volatile = it.ty(gimli::DW_TAG_volatile_type, vec![], Some(short));
    let alias = it.ty(gimli::DW_TAG_typedef, vec![named("alias")], Some(volatile));
    it.constant("aliased", alias, &[0xfe, 0xff]);
    // Enumerations.
    let color = it.ty(gimli::DW_TAG_enumeration_type, vec![named("color"), sized(4)], None);
    for (name, value) in [("red", 1), ("dark", -2)] {
        let value = (gimli::DW_AT_const_value, Write::Sdata(value));
        tag(&mut it, color, gimli::DW_TAG_enumerator, vec![named(name), value]);
    }
    it.constant("dark", color, &(-2i32).to_le_bytes());
    it.constant("none", color, &7u32.to_le_bytes());
    // Arrays.
    let array = |it: &mut Synthetic, of, counts: &[(gimli::DwAt, u64)]| {
        let array = it.ty(gimli::DW_TAG_array_type, vec![], Some(of));
        for (name, count) in counts {
            it.entry(array, gimli::DW_TAG_subrange_type, vec![(*name, Write::Udata(*count))]);
        }
        array
    };
    let shorts = array(&mut it, short, &[(gimli::DW_AT_count, 3)]);
    it.constant("shorts", shorts, &[1, 0, 2, 0, 3, 0]);
    let table = array(&mut it, short, &[(gimli::DW_AT_upper_bound, 1), (gimli::DW_AT_count, 10)]);
    it.constant("table", table, &[0; 40]);
    let char = it.base("char", 1, gimli::DW_ATE_signed_char);
    let text = array(&mut it, char, &[(gimli::DW_AT_count, 8)]);
    it.constant("text", text, b"a\"b\0....");
    let open = array(&mut it, char, &[]);
    it.constant("open", open, b"abc");
    // A structure with members of every kind.
    let all = it.ty(gimli::DW_TAG_structure_type, vec![named("all"), sized(32)], None);
    let at = |n| (gimli::DW_AT_data_member_location, Write::Udata(n));
    let member = |it: &mut Synthetic, attributes| it.entry(all, gimli::DW_TAG_member, attributes);
    member(&mut it, vec![named("i"), of_type(int), at(0)]);
    member(&mut it, vec![named("p"), of_type(wrapper), at(4)]);
    member(&mut it, vec![named("s"), of_type(shorts), at(8)]);
    member(&mut it, vec![named("t"), of_type(text), at(14)]);
    let bits = |n| (gimli::DW_AT_bit_size, Write::Udata(n));
    member(
        &mut it,
        vec![named("new"), of_type(int), bits(3), (gimli::DW_AT_data_bit_offset, Write::Udata(8 * 24 + 2))],
    );
    let old = (gimli::DW_AT_bit_offset, Write::Udata(32 - 8 - 4));
    member(&mut it, vec![named("old"), of_type(int), bits(4), old, at(24), sized(4)]);
    member(&mut it, vec![named("beyond"), of_type(int), at(30)]);
    it.entry(
        all,
        gimli::DW_TAG_member,
        vec![named("shared"), of_type(int), (gimli::DW_AT_external, Write::Flag(true))],
    );
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&(-5i32).to_le_bytes());
    bytes[4] = 0x40;
    bytes[8] = 9;
    bytes[14..17].copy_from_slice(b"xyz");
    bytes[24] = 0b11100;
    bytes[25] = 0b0101;
    it.constant("all", all, &bytes);
    let outer = it.ty(gimli::DW_TAG_class_type, vec![named("outer"), sized(36)], None);
    it.entry(outer, gimli::DW_TAG_inheritance, vec![of_type(all), at(0)]);
    it.entry(outer, gimli::DW_TAG_member, vec![named("n"), of_type(int), at(32)]);
    it.constant("outer", outer, &[bytes.as_slice(), &[6, 0, 0, 0]].concat());
    // An enumeration of Rust.
    let variants = it.ty(gimli::DW_TAG_structure_type, vec![named("Option<u8>"), sized(2)], None);
    it.entry(variants, gimli::DW_TAG_variant_part, vec![]);
    it.constant("option", variants, &[1, 2]);
    // A type that refers to itself, and one that is only declared.
    let endless = it.ty(gimli::DW_TAG_const_type, vec![], None);
    it.dwarf.unit.get_mut(endless).set(gimli::DW_AT_type, Write::UnitRef(endless));
    it.constant("endless", endless, &[0; 8]);
    let declared = it.ty(gimli::DW_TAG_structure_type, vec![named("declared")], None);
    it.constant("declared", declared, &[0; 8]);
    let qualifiers = "const ".repeat(limits::MAX_REFERENCE_DEPTH + 1);
    assert_eq!(
        stopped(&it.finish(), 0x150),
        [
            "unsigned int x = 4294967295 @ constant",
            "_Bool x = true @ constant",
            "bad bool x = 7 @ constant",
            "char x = 97 'a' @ constant",
            "signed char x = -1 @ constant",
            "char32_t x = '\\u{20ac}' @ constant",
            "float x = 1.5 @ constant",
            "double x = NaN @ constant",
            "long long x = -1 @ constant",
            "__int128 x = -2 @ constant",
            "() x = () @ constant",
            "const short * guest = 0x10410 @ constant",
            "void * void_guest = 0x0 @ constant",
            "int * own = 0x7fff00001000 @ constant",
            "alias aliased = -2 @ constant",
            "color dark = dark @ constant",
            "color none = 7 @ constant",
            "short[3] shorts = {1, 2, 3} @ constant",
            "short[2][10] table = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...} @ constant",
            "char[8] text = \"a\\\"b\" @ constant",
            "char open: its type has no size",
            "all all = {i = -5, p = 0x40, s = {...}, t = \"xyz\", new = -1, old = 5, beyond = ?} @ constant",
            "outer outer = {all = {...}, n = 6} @ constant",
            "Option<u8> option = {...} @ constant",
            &format!("{qualifiers}.. endless: its type has no size"),
            "declared declared: its type has no size",
        ]
    );
}
