//! Images of frames and instances from which the runtime can go on, and the points at which it can.

use super::module::{Module, ctx, instance};
use super::{Singlepass, frame};
use crate::process::{Memory, ThreadId};
use crate::runtime::{Images, InstanceParts, Reach, Reaches, Settling, Why};
use crate::state::{ExecutionStateImage, ModuleStateMap, PointKind, goes_on_at};
use crate::unwind::Cursor;

impl Images for Singlepass {
    fn image(&self, thread: ThreadId, at: &Cursor, memory: &dyn Memory) -> Result<ExecutionStateImage, Why> {
        let boundary = self.boundary.iter().find(|(of, _)| *of == thread).map(|(_, registers)| *registers);
        Ok(frame::image(self, boundary, at, memory).unwrap_or_default())
    }

    fn instance_parts(&self, module: usize, instance: u64, memory: &dyn Memory) -> Result<InstanceParts, Why> {
        let module = self.modules.get(module).ok_or(Why::NoSuchModule)?;
        // The frame may run code of another tier. The instance belongs to the module that was instantiated.
        let own = memory.read_u64(instance.wrapping_add(ctx::MODULE)).ok();
        let instantiated = self.modules.iter().find(|m| m.inner.is_some() && m.inner == own);
        instance::parts(instantiated.unwrap_or(module), instance, memory)
    }

    fn goes_on_at(&self, address: u64, memory: &dyn Memory) -> Option<PointKind> {
        let (_, module) = self.module_at(address)?;
        let offset = usize::try_from(address.checked_sub(module.code.0)?).ok()?;
        goes_on_at(module.map.around(offset, memory).ok()??, offset)
    }
}

impl Settling for Singlepass {
    fn settles(&self, module: usize) -> Result<(), Why> {
        match self.modules.get(module) {
            None => Err(Why::NoSuchModule),
            // With full preemption the headers of functions have states even without track_state. But these tell
            // nothing new: the locals have fixed places, and the operand stack is empty there.
            Some(module) if !module.tracked => {
                let why = "the module was compiled without track_state: its operand stacks are recorded nowhere, and its \
                           locals are known without a step";
                Err(Why::other(why))
            }
            Some(_) => Ok(()),
        }
    }

    fn reach(&self, memory: &dyn Memory) -> Reaches {
        // With full preemption each function has at least one loop point, the one in its header.
        let preempted = |map: &ModuleStateMap| map.local_functions.values().any(|f| !f.loop_offsets.is_empty());
        let of = |module: &Module| {
            let map = module.map.all(memory).ok().cloned();
            let only = !map.as_deref().is_some_and(preempted);
            (module.code, map, only)
        };
        let modules: Vec<_> = self.modules.iter().map(of).collect();
        Box::new(move |pc| {
            let Some((code, map, only)) = modules.iter().find(|(code, ..)| code.0 <= pc && pc < code.1) else {
                return Reach::Outside;
            };
            let (Ok(offset), Some(map)) = (usize::try_from(pc - code.0), map) else { return Reach::Inside };
            match (map.lookup(offset).and_then(|p| p.diff()), goes_on_at(map, offset)) {
                (None, _) => Reach::Inside,
                (Some(_), Some(PointKind::Loop | PointKind::Trappable)) => Reach::Point,
                (Some(_), Some(PointKind::Call)) => Reach::Returned { only: *only },
                (Some(_), None) => Reach::Shown,
            }
        })
    }
}
