//! Compares a file with the module that runs in a process.

use std::collections::HashMap;
use std::ops::Range;

use wasmparser::Parser;

use super::declarations::{Declarations, type_list};
use super::module::WasmModule;
use super::operators::{Reach, point_of};
use super::text;
use super::types::ValType;
use crate::state::PointKind;

/// What is known of a compiled module from the process that runs it. [`WasmModule::fits`] compares a file with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleFacts {
    /// Number of imported functions, if known.
    pub imported_functions: Option<u32>,
    /// The functions that the module defines, in order.
    pub functions: Vec<FunctionFacts>,
    /// What the module declares.
    pub declarations: Declarations,
}

/// What is known of one function from the process that runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionFacts {
    /// Number of parameters and declared locals together, if known.
    pub locals: Option<usize>,
    /// All points of the function's state map: operator index (`u64::MAX` is the function header) and kind, in any
    /// order.
    pub points: Vec<(u64, PointKind)>,
    /// Types of the function's parameters, if known.
    pub params: Option<Vec<ValType>>,
    /// For some points, the operands that the compiler recorded, bottom first. An operand has its bits if the
    /// compiler knew it to be constant, and is `None` otherwise.
    pub operands: HashMap<(u64, PointKind), Vec<Option<u64>>>,
}

/// How messages name a point of this kind.
fn noun(kind: PointKind) -> &'static str {
    match kind {
        PointKind::Call => "a call",
        PointKind::Trappable => "a trap",
        PointKind::Loop => "a loop",
    }
}

impl WasmModule {
    /// Compares what the file declares with what a runtime keeps of the declarations. `Ok` lists what was compared.
    /// `Err` says what is different.
    pub fn declares(&self, theirs: &Declarations) -> Result<Vec<String>, String> {
        let mut compared = 0;
        for (&function, (params, results)) in &theirs.signatures {
            let Some((own_params, own_results)) = self.signature(function) else { continue };
            if (params.as_slice(), results.as_slice()) != (own_params, own_results) {
                let show = |params: &[ValType], results: &[ValType]| {
                    format!("{} -> {}", type_list(params), type_list(results))
                };
                return Err(format!(
                    "function {function} of all is {} in the process, {} in {}",
                    show(params, results),
                    show(own_params, own_results),
                    self.file
                ));
            }
            compared += 1;
        }
        let mut checked = self.declarations.compare(theirs, &self.file)?;
        if compared > 0 {
            checked.push(format!("types of {compared} functions"));
        }
        Ok(checked)
    }

    /// Compares the module with what is known of it from a process. `Ok` lists what was compared. `Err` says why it
    /// is another module.
    ///
    /// Points are compared both ways: each point must be on an operator that has such a point, and each operator in
    /// reachable code that has a point must be among the points. Loops have points only with full preemption, so
    /// either all loops or none must have them. The comparison takes time linear in the size of the code.
    pub fn fits(&self, facts: &ModuleFacts) -> Result<Vec<String>, String> {
        let mut checked = Vec::new();
        let file = &self.file;
        if let Some(imports) = facts.imported_functions {
            if imports != self.imported_functions() {
                return Err(format!(
                    "the module in the process imports {imports} functions, {file} imports {}",
                    self.imported_functions()
                ));
            }
            checked.push(format!("{imports} imported functions"));
        }
        let declared = self.declares(&facts.declarations)?;
        if facts.functions.len() != self.bodies.len() {
            return Err(format!(
                "the module in the process defines {} functions, {file} defines {}",
                facts.functions.len(),
                self.bodies.len()
            ));
        }
        checked.push(format!("{} defined functions", self.bodies.len()));

        let (mut with_params, mut with_locals, mut skipped) = (0usize, 0usize, Vec::new());
        let mut tally = Tally::default();
        for (local, function) in (0u32..).zip(&facts.functions) {
            if let (Some(params), Some((own, _))) =
                (&function.params, self.signature(self.imported_functions().saturating_add(local)))
            {
                if params != own {
                    return Err(format!(
                        "function {local} takes {} in the process, {} in {file}",
                        type_list(params),
                        type_list(own)
                    ));
                }
                with_params += 1;
            }
            if let (Some(locals), Some(own)) = (function.locals, self.local_types(local)) {
                if locals != own.len() {
                    return Err(format!(
                        "function {local} has {locals} locals in the process, {} in {file}",
                        own.len()
                    ));
                }
                with_locals += 1;
            }
            self.compare_operands(local, function, &mut tally)?;
            if let Err(reason) = self.compare_points(local, &function.points, &mut tally)? {
                skipped.push(format!("points of function {local} not compared: {reason}"));
            }
        }
        if let (Some(with), Some(without)) = (&tally.loop_with_point, &tally.loop_without_point) {
            return Err(format!("the process has {with}, but none at {without}"));
        }
        if with_params > 0 {
            checked.push(format!("parameter types of {with_params} functions"));
        }
        if with_locals > 0 {
            checked.push(format!("locals of {with_locals} functions"));
        }
        checked.push(format!("{} call, {} trap and {} loop points", tally.calls, tally.traps, tally.loops));
        if tally.operands > 0 {
            checked.push(format!("constants and numbers of operands at {} points", tally.operands));
        }
        checked.extend(declared);
        checked.extend(skipped);
        Ok(checked)
    }

    /// Compares the operands that a state map has at the points of a function with those that the file has there: how
    /// many there are, and which of them are constants with which bits.
    fn compare_operands(&self, local: u32, facts: &FunctionFacts, tally: &mut Tally) -> Result<(), String> {
        if facts.operands.is_empty() {
            return Ok(());
        }
        let mut different = None;
        self.each_operands(local, |index, kind, own| {
            let (Some(theirs), Some(own)) = (facts.operands.get(&(index, kind)), own) else { return true };
            let at = format!("at operator {index} of function {local}");
            let show = |v: &Option<u64>| v.map_or("no constant".to_string(), |bits| format!("the constant {bits:#x}"));
            if theirs.len() != own.len() {
                let (theirs, own) = (theirs.len(), own.len());
                different = Some(format!("{at} the process has {theirs} operands, {} has {own}", self.file));
            } else if let Some((i, (theirs, own))) = theirs.iter().zip(own).enumerate().find(|(_, (a, b))| a != b) {
                let (theirs, own) = (show(theirs), show(own));
                different = Some(format!("{at} operand {i} is {theirs} in the process, {own} in {}", self.file));
            }
            tally.operands += 1;
            different.is_none()
        });
        different.map_or(Ok(()), Err)
    }

    /// Compares the points of one function. The inner `Err` says why this function could not be compared, the outer
    /// `Err` why the module does not fit.
    fn compare_points(
        &self,
        local: u32,
        points: &[(u64, PointKind)],
        tally: &mut Tally,
    ) -> Result<Result<(), String>, String> {
        let file = &self.file;
        // The function header polls the interrupt flag too (`begin_body`). Its point has the index before the first
        // operator.
        let mut points: Vec<_> = points.iter().copied().filter(|&p| p != (u64::MAX, PointKind::Loop)).collect();
        points.sort_unstable_by_key(|&(index, _)| index);
        let Some(body) = self.body(local) else { return Ok(Err("it has no body".to_string())) };
        let mut reader = match body.get_operators_reader() {
            Ok(reader) => reader,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let mut points = points.into_iter().peekable();
        let mut reach = Reach::default();
        let mut index = 0u64;
        while !reader.eof() {
            let op = match reader.read() {
                Ok(op) => op,
                Err(e) => return Ok(Err(e.to_string())),
            };
            let expected = if reach.step(&op) { point_of(&op) } else { None };
            let mut found = false;
            while let Some((_, kind)) = points.next_if(|&(at, _)| at == index) {
                if expected != Some(kind) {
                    return Err(format!(
                        "operator {index} of function {local} is `{}` in {file}, the process has {} there",
                        text::operator(&op),
                        noun(kind)
                    ));
                }
                found = true;
            }
            match expected {
                Some(PointKind::Loop) if found => {
                    tally.loops += 1;
                    tally.loop_with_point.get_or_insert_with(|| loop_at(index, local));
                }
                Some(PointKind::Loop) => {
                    tally.loop_without_point.get_or_insert_with(|| loop_at(index, local));
                }
                Some(kind) if !found => {
                    return Err(format!(
                        "operator {index} of function {local} is `{}` in {file}, the process does not have {} there",
                        text::operator(&op),
                        noun(kind)
                    ));
                }
                Some(PointKind::Call) => tally.calls += 1,
                Some(PointKind::Trappable) => tally.traps += 1,
                None => {}
            }
            index += 1;
        }
        match points.next() {
            Some((at, kind)) => Err(format!(
                "function {local} has {index} operators in {file}, the process has {} at operator {at}",
                noun(kind)
            )),
            None => Ok(Ok(())),
        }
    }

    /// Checks that `theirs`, the module that runs, differs from this file in custom sections only.
    ///
    /// # Errors
    /// The text tells the first difference, by its offset in this file.
    pub fn same_but_custom_sections(&self, theirs: &WasmModule) -> Result<(), String> {
        let sections = |bytes: &[u8]| {
            let payloads = Parser::new(0).parse_all(bytes).map_while(Result::ok);
            let sections = payloads.filter_map(|payload| payload.as_section().filter(|(id, _)| *id != 0));
            sections.collect::<Vec<_>>()
        };
        let (own, other) = (sections(&self.bytes), sections(&theirs.bytes));
        let part = |bytes: &'_ [u8], range: &Range<u64>| -> Option<Vec<u8>> {
            Some(bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)?.to_vec())
        };
        let different = |offset: u64| {
            Err(format!(
                "the Wasm that the module was made from is another one: {} differs first at offset {offset:#x}",
                self.file
            ))
        };
        for (i, (id, range)) in own.iter().enumerate() {
            let Some((other_id, other_range)) = other.get(i) else { return different(range.start) };
            if id != other_id {
                return different(range.start);
            }
            let (Some(a), Some(b)) = (part(&self.bytes, range), part(&theirs.bytes, other_range)) else {
                return different(range.start);
            };
            if a != b {
                let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
                return different(range.start + same as u64);
            }
        }
        if other.len() > own.len() {
            return different(self.bytes.len() as u64);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Tally {
    calls: usize,
    traps: usize,
    loops: usize,
    operands: usize,
    loop_with_point: Option<String>,
    loop_without_point: Option<String>,
}

fn loop_at(index: u64, local: u32) -> String {
    format!("a loop at operator {index} of function {local}")
}
