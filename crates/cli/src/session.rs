//! From flags to a loaded engine, the same way for every command: open, plan, show the plan, load; and the files that a
//! run leaves behind closed properly at its end.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use engine::{Dump, Engine, EngineOptions, MemoryPlan};
use files::Checkpoint;

use crate::args::{BankArgs, SidecarArgs};
use crate::commands::trace::Identity;
use crate::commands::verify;
use crate::ui::error::Failure;
use crate::{demo, ui};

/// An opened checkpoint and what to call it.
pub(crate) struct Model {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) name: String,
    /// As they were given.
    pub(crate) path: PathBuf,
    pub(crate) sidecar: Option<PathBuf>,
    /// Further copies of the sidecar.
    pub(crate) copies: Vec<PathBuf>,
}

/// Where the checkpoint lies and what to call it; without a path it is the demo, unpacked if need be.
pub(crate) fn locate(path: Option<&Path>) -> Result<(PathBuf, String), Failure> {
    if let Some(path) = path {
        return Ok((path.to_owned(), display_name(path)));
    }
    let demo = demo::ensure()?;
    if let Some(reason) = &demo.fallback {
        ui::note(format!("note: the demo lies in {} ({reason})", demo.path.display()));
    }
    Ok((demo.path, "demo".to_owned()))
}

/// Opens `path`, or the demo.
pub(crate) fn open(path: Option<&Path>, sidecars: &SidecarArgs) -> Result<Model, Failure> {
    let (path, name) = locate(path)?;
    let options = with_sidecars(sidecars);
    let checkpoint = Checkpoint::open_with(&path, &options)?;
    Ok(Model { checkpoint, name, path, sidecar: options.sidecar, copies: options.copies })
}

/// How to open a checkpoint whose sidecar, and copies of it, were named.
pub(crate) fn with_sidecars(sidecars: &SidecarArgs) -> files::OpenOptions {
    let sidecar = sidecars.first().map(Path::to_owned);
    files::OpenOptions { sidecar, copies: sidecars.copies(), ..Default::default() }
}

/// The last component, which is what people call a model.
fn display_name(path: &Path) -> String {
    path.canonicalize()
        .ok()
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| path.display().to_string())
}

/// A loaded engine with what has to be closed when it is done.
pub(crate) struct Session {
    pub(crate) engine: Engine,
    dump: Option<PathBuf>,
    /// What loading itself read (preloading); a report of the run leaves it out.
    at_load: experts::Stats,
}

/// Checks what the arguments want checked, plans, shows the plan, loads.
pub(crate) fn load(model: &Model, args: &BankArgs, quiet: bool) -> Result<Session, Failure> {
    load_with(model, args, args.options(), quiet)
}

/// The same with the options that a command has made of the arguments.
pub(crate) fn load_with(
    model: &Model,
    args: &BankArgs,
    options: EngineOptions,
    quiet: bool,
) -> Result<Session, Failure> {
    args.flash_moe.check(&options)?;
    if args.flash_moe.moe_verify_sidecar {
        verify::before_run(model, quiet)?;
    }
    let dump_path = args.dump.as_deref();
    let plan: MemoryPlan = Engine::plan(&model.checkpoint, &options)?;
    if !quiet {
        ui::note(ui::plan::render(&model.name, &plan));
    }
    let dump = match dump_path {
        None => None,
        Some(path) => {
            let file = File::create(path).map_err(|e| Failure::file("cannot write the dump", path, &e))?;
            Some(Dump::new(Box::new(BufWriter::new(file))))
        }
    };
    let mut engine = Engine::load(&model.checkpoint, options)?;
    if !quiet && engine.reader_was_measured() {
        ui::note(format!("reader: {}", engine.reader()));
    }
    if let Some(path) = &engine.options().trace {
        Identity::of_run(model, &engine).write(path)?;
    }
    engine.set_dump(dump);
    let at_load = counted(&engine);
    let mut session = Session { engine, dump: dump_path.map(Path::to_owned), at_load };
    session.warn();
    Ok(session)
}

fn counted(engine: &Engine) -> experts::Stats {
    engine.bank_stats().cloned().unwrap_or_default()
}

impl Session {
    /// The same model with another bank; see [`Engine::with_streaming`].
    pub(crate) fn with_streaming(self, model: &Model, options: EngineOptions) -> Result<Session, Failure> {
        let engine = self.engine.with_streaming(&model.checkpoint, options)?;
        let at_load = counted(&engine);
        Ok(Session { engine, at_load, dump: self.dump })
    }

    /// What the bank did since the load.
    pub(crate) fn counters(&self) -> Option<experts::Counters> {
        self.engine.bank_stats().map(|stats| stats.total().since(&self.at_load.total()))
    }

    /// The same, layer by layer; none where the routed experts are left out.
    pub(crate) fn layers(&self) -> Vec<experts::stats::LayerCounters> {
        let mut layers = self.engine.bank_stats().map(|stats| stats.layers.clone()).unwrap_or_default();
        for (layer, before) in layers.iter_mut().zip(&self.at_load.layers) {
            layer.counters = layer.counters.since(&before.counters);
        }
        layers
    }

    /// Says what loading and reading met that did not stop them, once.
    pub(crate) fn warn(&mut self) {
        while let Some(warning) = self.engine.take_warning() {
            ui::note(format!("warning: {warning}"));
        }
    }

    /// Flushes trace and dump; a trace that could not be written is an error, not a surprise later.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.warn();
        self.engine.finish_trace()?;
        if let (Some(dump), Some(path)) = (self.engine.set_dump(None), &self.dump) {
            dump.finish().map_err(|e| Failure::file("cannot write the dump", path, &e))?;
        }
        Ok(())
    }
}
