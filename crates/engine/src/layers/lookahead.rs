//! Guesses which experts the next routed layer will ask for, while this one's are on their way: reads that are right are then hidden
//! behind the rest of this layer and the next one's attention.
//!
//! Guesses move bytes early and nothing else; no result depends on them.

use std::time::Instant;

use experts::Bank;
use experts::prefetch::Judge;

use crate::Error;
use crate::backend::{Backend, Buf, View};
use crate::layers::oracle::Oracle;
use crate::layers::router::{Router, RouterConfig, RouterState, route};
use crate::load::Loader;
use crate::options::Prefetch;

/// The guessing of one sequence of tokens.
pub(crate) struct Lookahead {
    mode: Prefetch,
    judge: Judge,
    /// All routed layers, in order.
    routers: Vec<Router>,
    logits: Buf, // [n_experts]
    normed: Buf, // [hidden], where routers norm their input
    scratch: RouterState,
    ids: Vec<u32>,      // [k]
    weights: Vec<f32>,  // [k]
    previous: Vec<u32>, // [layers, k]: what the token before asked for
    seen: bool,
    /// A dense layer has begun the token that runs.
    led: bool,
    /// Only where it guesses.
    oracle: Option<Oracle>,
}

impl Lookahead {
    /// Takes the routers that the loader has collected; their input is rows of `hidden`.
    pub(crate) fn new(loader: &mut Loader<'_>, c: &RouterConfig, hidden: usize) -> Result<Self, Error> {
        let mode = loader.options.prefetch;
        let routers = std::mem::take(&mut loader.routers);
        let oracle = match (&loader.options.oracle, mode) {
            (Some(path), Prefetch::Oracle) => Some(Oracle::open(path)?),
            (None, Prefetch::Oracle) => {
                return Err(Error::Option { option: "prefetch", why: "an oracle needs a trace".into() });
            }
            _ => None,
        };
        Ok(Self {
            mode,
            judge: Judge::default(),
            logits: loader.buffer(c.n_experts),
            normed: loader.buffer(c.norm_eps.map_or(0, |_| hidden)),
            scratch: RouterState::new(c),
            ids: vec![0; c.top_k],
            weights: vec![0.0; c.top_k],
            previous: vec![0; routers.len() * c.top_k],
            seen: false,
            led: false,
            oracle,
            routers,
        })
    }

    /// Guesses in another way from now on, and forgets what was seen and measured; not for oracles, whose trace is read at load.
    pub(crate) fn set_mode(&mut self, mode: Prefetch) {
        (self.mode, self.judge, self.seen, self.led) = (mode, Judge::default(), false, false);
    }

    /// A step of several tokens asks for more experts than anybody could guess.
    pub(crate) fn pause(&mut self, layer: u32, k: usize, n_tokens: usize) -> Result<(), Error> {
        self.judge.pause();
        (self.seen, self.led) = (false, false);
        self.oracle.as_mut().map_or(Ok(()), |oracle| oracle.take(layer, k, n_tokens).map(drop))
    }

    /// Before a dense layer whose next layer is the first routed one: `x` is the row that its FFN sees.
    pub(crate) fn lead(
        &mut self,
        backend: &mut dyn Backend,
        bank: &mut Bank,
        c: &RouterConfig,
        layer: u32,
        x: View,
    ) -> Result<(), Error> {
        if !self.guesses(bank) || self.routers.first().is_none_or(|first| first.layer != layer + 1) {
            return Ok(());
        }
        self.begin_token(bank);
        self.led = true;
        // An oracle and a previous token are asked in the last layer already.
        match self.mode {
            Prefetch::Auto | Prefetch::NextLayer => self.ask_router(backend, bank, c, 0, x),
            _ => Ok(()),
        }
    }

    /// Tells the bank what the layer after `layer` will probably ask for. `x` is the one row that `layer`'s own router has seen,
    /// `chosen` what it chose.
    pub(crate) fn guess(
        &mut self,
        backend: &mut dyn Backend,
        bank: &mut Bank,
        c: &RouterConfig,
        layer: u32,
        x: View,
        chosen: &[u32],
    ) -> Result<(), Error> {
        if !self.guesses(bank) {
            return Ok(());
        }
        let Some(at) = self.routers.iter().position(|router| router.layer == layer) else { return Ok(()) };
        if at == 0 && !std::mem::take(&mut self.led) {
            self.begin_token(bank);
        }
        let k = c.top_k;
        if let Some(oracle) = &mut self.oracle {
            oracle.take(layer, k, 1)?;
            return match oracle.next() {
                Some((next, experts)) => Ok(bank.read_ahead(next, experts)?),
                None => Ok(()),
            };
        }
        self.previous[at * k..][..k].copy_from_slice(chosen);
        let next = (at + 1) % self.routers.len();
        let known = self.seen;
        self.seen |= next == 0;
        match self.mode {
            Prefetch::Previous if known => {
                Ok(bank.read_ahead(self.routers[next].layer, &self.previous[next * k..][..k])?)
            }
            // Nobody knows the next token yet.
            Prefetch::Auto | Prefetch::NextLayer if next > 0 => self.ask_router(backend, bank, c, next, x),
            _ => Ok(()),
        }
    }

    fn guesses(&self, bank: &Bank) -> bool {
        self.mode != Prefetch::Off && !bank.plan().is_resident()
    }

    fn begin_token(&mut self, bank: &Bank) {
        if self.mode == Prefetch::Auto {
            self.judge.token(Instant::now(), bank.stats().total().misses);
        }
    }

    /// Asks the router at `next` early, with `x` for what it will see (before its own norm, where it has one).
    fn ask_router(
        &mut self,
        backend: &mut dyn Backend,
        bank: &mut Bank,
        c: &RouterConfig,
        next: usize,
        x: View,
    ) -> Result<(), Error> {
        if self.mode == Prefetch::Auto && !self.judge.is_on() {
            return Ok(());
        }
        let router = &self.routers[next];
        let logits = View::rows(self.logits, c.n_experts);
        router.logits(backend, x, 1, View::rows(self.normed, x.stride), logits);
        let scores = backend.read(logits, 0, c.n_experts);
        route(c, &mut self.scratch, scores, &router.biases, &mut self.ids, &mut self.weights);
        Ok(bank.read_ahead(router.layer, &self.ids)?)
    }
}
