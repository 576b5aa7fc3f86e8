//! Typed, bounded access to the `{architecture}.*` metadata of a checkpoint.
//!
//! Knows how a number is asked for and refused, not what any of them means: that is the layers' and the models' business.

use files::{Checkpoint, Metadata};

use crate::Error;

/// Bounds of what a file may claim: far above any model, far below what could overflow.
const SIZE_MAX: u64 = 1 << 24;

/// The metadata of one checkpoint, by names without the architecture's prefix.
pub(crate) struct Keys<'a> {
    metadata: &'a Metadata,
    checkpoint: &'a Checkpoint,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { metadata: checkpoint.metadata(), checkpoint }
    }

    pub(crate) fn wrong(&self, why: String) -> Error {
        Error::Metadata { path: self.checkpoint.root().to_owned(), why }
    }

    /// The full name.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.checkpoint.architecture())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.metadata.get(&self.key(name)).is_some()
    }

    /// A size: at least 1, and so small that no product of sizes that the plan forms can overflow.
    pub(crate) fn size(&self, name: &str) -> Result<usize, Error> {
        self.size_up_to(name, SIZE_MAX)
    }

    pub(crate) fn size_up_to(&self, name: &str, max: u64) -> Result<usize, Error> {
        let value = self.metadata.u64(&self.key(name))?;
        self.bounded(name, value, max)
    }

    fn bounded(&self, name: &str, value: Option<u64>, max: u64) -> Result<usize, Error> {
        let key = self.key(name);
        let value = value.ok_or_else(|| self.wrong(format!("`{key}` is missing")))?;
        if value == 0 || value > max {
            return Err(self.wrong(format!("`{key}` is {value}, which is not in 1..={max}")));
        }
        Ok(value as usize)
    }

    /// A size that is the same in all layers; some files list it once per layer.
    pub(crate) fn uniform_size(&self, name: &str) -> Result<usize, Error> {
        let list = self.metadata.u64s(&self.key(name))?.unwrap_or_default();
        if let Some(other) = list.iter().find(|&&n| n != list[0]) {
            let (key, first) = (self.key(name), list[0]);
            let why =
                format!("`{key}` is {first} in one layer and {other} in another, which is not supported");
            return Err(self.wrong(why));
        }
        self.bounded(name, list.first().copied(), SIZE_MAX)
    }

    pub(crate) fn size_or(&self, name: &str, default: usize) -> Result<usize, Error> {
        let key = self.key(name);
        match self.metadata.u64(&key)? {
            None => Ok(default),
            Some(value) if value > SIZE_MAX => {
                Err(self.wrong(format!("`{key}` is {value}, above {SIZE_MAX}")))
            }
            Some(value) => Ok(value as usize),
        }
    }

    /// A size for each of `layers` layers, from one number or a list of as many or more; `None` where the file says nothing.
    pub(crate) fn sizes(&self, name: &str, layers: usize) -> Result<Option<Vec<usize>>, Error> {
        let key = self.key(name);
        let Some(values) = self.metadata.u64s(&key)? else { return Ok(None) };
        let values = match values[..] {
            [one] => vec![one; layers],
            _ if values.len() < layers => {
                return Err(self.wrong(format!("`{key}` has {} values for {layers} layers", values.len())));
            }
            _ => values[..layers].to_vec(),
        };
        match values.iter().find(|value| !(1..=SIZE_MAX).contains(*value)) {
            Some(value) => Err(self.wrong(format!("`{key}` has {value}, which is not in 1..={SIZE_MAX}"))),
            None => Ok(Some(values.into_iter().map(|value| value as usize).collect())),
        }
    }

    /// A positive number.
    pub(crate) fn f32(&self, name: &str) -> Result<f32, Error> {
        let key = self.key(name);
        let value = self.metadata.f32(&key)?.ok_or_else(|| self.wrong(format!("`{key}` is missing")))?;
        if !value.is_finite() || value <= 0.0 {
            return Err(self.wrong(format!("`{key}` is {value}")));
        }
        Ok(value)
    }

    /// Any finite number.
    pub(crate) fn f32_if_any(&self, name: &str) -> Result<Option<f32>, Error> {
        Ok(self.metadata.f32(&self.key(name))?)
    }

    pub(crate) fn bool_or(&self, name: &str, default: bool) -> Result<bool, Error> {
        Ok(self.metadata.bool(&self.key(name))?.unwrap_or(default))
    }

    pub(crate) fn bools(&self, name: &str) -> Result<Option<Vec<bool>>, Error> {
        Ok(self.metadata.bools(&self.key(name))?)
    }

    pub(crate) fn str(&self, name: &str) -> Result<Option<&'a str>, Error> {
        Ok(self.metadata.str(&self.key(name))?)
    }

    /// Layers that a decoder runs: the last ones of the file may be there to predict further tokens.
    pub(crate) fn layers(&self) -> Result<usize, Error> {
        let blocks = self.size("block_count")?;
        let nextn = self.size_or("nextn_predict_layers", 0)?;
        if nextn >= blocks {
            return Err(self.wrong(format!("nextn_predict_layers {nextn} of block_count {blocks}")));
        }
        Ok(blocks - nextn)
    }

    /// Positions that the model was made for.
    pub(crate) fn context_length(&self) -> Result<u32, Error> {
        Ok(self.size_up_to("context_length", 1 << 31)? as u32)
    }

    /// Rows of the embedding.
    pub(crate) fn vocab_size(&self) -> Result<usize, Error> {
        let Some(tensor) = self.checkpoint.tensor("token_embd.weight") else {
            return Err(Error::MissingTensor {
                tensor: "token_embd.weight".into(),
                path: self.checkpoint.root().to_owned(),
            });
        };
        match tensor.shape.get(1) {
            Some(&n) if n > 0 && n <= SIZE_MAX => Ok(n as usize),
            _ => Err(Error::Shape {
                tensor: tensor.name.clone(),
                found: tensor.shape.clone(),
                expected: vec![],
            }),
        }
    }
}
