//! A process that is stopped for as long as it is held, so that everything that is read meanwhile belongs to one moment.

use super::proc::strangers;
use super::reread::ReadSet;
use super::step::{SettleReport, Verdict};
use super::stop::Stopped;
use super::{CaptureOptions, LiveTarget};
use crate::error::Error;
use crate::limits;
use crate::process::{Memory, ThreadId};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Which thread is single-stepped before the process is looked at, and how far.
pub struct Steps {
    /// The thread that is stepped.
    pub thread: ThreadId,
    /// Decides before each step whether it is made, as for [`LiveTarget::settle`].
    pub verdict: Box<Judge>,
}

/// A function that decides what to do at an instruction. It gets the address of the next instruction and the memory.
pub type Judge = dyn FnMut(u64, &dyn Memory) -> Verdict + Send;

/// Work for the tracing thread, which is the only one that may use ptrace on the process.
type Job = Box<dyn FnOnce(&mut Stopped) + Send>;

/// A process whose threads are all stopped. Dropping it lets them go, and so does the end of this program.
pub struct Held {
    target: LiveTarget,
    settled: Option<SettleReport>,
    jobs: Option<Sender<Job>>,
    tracer: Option<JoinHandle<Duration>>,
}

impl Held {
    /// Stops all threads of process `pid`, steps one of them if `steps` is given, and keeps all of them stopped.
    ///
    /// # Errors
    /// The errors are those of [`LiveTarget::capture`] and [`LiveTarget::settle`]. The threads have been let go then.
    pub fn hold(pid: u32, options: &CaptureOptions, steps: Option<Steps>) -> Result<Held, Error> {
        let ended = |why: &str| Error::Attach { pid, why: why.to_string() };
        let (tell, told) = channel();
        let (jobs, work) = channel::<Job>();
        let options = options.clone();
        let trace = move || match stand(pid, &options, steps) {
            Err(e) => {
                let _ = tell.send(Err(e));
                Duration::ZERO
            }
            Ok((mut stopped, target, settled)) => {
                if tell.send(Ok((target, settled))).is_ok() {
                    serve(&mut stopped, work);
                }
                stopped.release();
                stopped.since.elapsed()
            }
        };
        let tracer = std::thread::Builder::new().name("tracer".to_string()).spawn(trace);
        let tracer = tracer.map_err(|e| ended(&format!("no thread for tracing could be started: {e}")))?;
        let (target, settled) = told.recv().map_err(|_| ended("the tracing thread has ended"))??;
        Ok(Held { target, settled, jobs: Some(jobs), tracer: Some(tracer) })
    }

    /// The stopped process as a target.
    pub fn target(&self) -> &LiveTarget {
        &self.target
    }

    /// Ids of the threads that the process has now and that are not among the target's threads.
    pub fn unknown_threads(&self) -> Vec<u32> {
        strangers(self.target.pid, &self.target.threads)
    }

    /// What the steps did, if there were any.
    pub fn settled(&self) -> Option<SettleReport> {
        self.settled
    }

    /// Runs `work` on the tracing thread and returns its result.
    pub(super) fn on_tracer<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Stopped) -> T + Send + 'static,
    ) -> Result<T, String> {
        let (tell, told) = channel();
        let job: Job = Box::new(move |stopped| {
            let _ = tell.send(work(stopped));
        });
        let sent = self.jobs.as_ref().and_then(|jobs| jobs.send(job).ok());
        sent.and_then(|()| told.recv().ok()).ok_or_else(|| "the tracing thread has ended".to_string())
    }

    /// Lets the process go on and returns how long it was stopped.
    pub fn release(mut self) -> Duration {
        self.finish()
    }

    fn finish(&mut self) -> Duration {
        drop(self.jobs.take());
        self.tracer.take().and_then(|t| t.join().ok()).unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.finish();
    }
}

fn stand(
    pid: u32,
    options: &CaptureOptions,
    steps: Option<Steps>,
) -> Result<(Stopped, LiveTarget, Option<SettleReport>), Error> {
    let mut stopped = Stopped::all(pid, options)?;
    let step = |mut s: Steps| stopped.step(s.thread, limits::MAX_SNAPSHOT_STEPS, &mut *s.verdict);
    let settled = steps.map(step).transpose()?;
    let target = LiveTarget::look(&mut stopped, options, &ReadSet::default())?;
    Ok((stopped, target, settled))
}

fn serve(stopped: &mut Stopped, work: Receiver<Job>) {
    for job in work {
        job(stopped);
    }
}
