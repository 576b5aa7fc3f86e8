//! How the next token is chosen, and for how long.

use clap::Args;
use engine::SamplingOptions;

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Tokens to generate at most
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        default_value_t = 256,
        alias = "n-predict",
        alias = "predict"
    )]
    pub(crate) max_tokens: u32,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", visible_alias = "temp", default_value_t = SamplingOptions::default().temperature, value_parser = at_least_zero)]
    temperature: f32,
    /// Keep only the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = SamplingOptions::default().top_k)]
    top_k: u32,
    /// Keep the likeliest tokens up to this probability; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().top_p, value_parser = fraction)]
    top_p: f32,
    /// Drop tokens less likely than P times the likeliest; 0 drops none
    #[arg(long, value_name = "P", default_value_t = SamplingOptions::default().min_p, value_parser = fraction)]
    min_p: f32,
    /// Divide the logits of recent tokens by this; 1 leaves them alone
    #[arg(long, value_name = "R", default_value_t = SamplingOptions::default().repetition_penalty, value_parser = above_zero)]
    repeat_penalty: f32,
    /// The same seed gives the same text, whatever the bank and the threads
    #[arg(short, long, value_name = "N", default_value_t = SamplingOptions::default().seed)]
    pub(crate) seed: u64,
    /// Go on after the model's end token
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

impl SamplingArgs {
    pub(crate) fn options(&self) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            seed: self.seed,
            ..SamplingOptions::default()
        }
    }
}

fn number(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() => Ok(x),
        _ => Err("expected a number".into()),
    }
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text).and_then(|x| if x >= 0.0 { Ok(x) } else { Err("expected 0 or more".into()) })
}

fn above_zero(text: &str) -> Result<f32, String> {
    number(text).and_then(|x| if x > 0.0 { Ok(x) } else { Err("expected more than 0".into()) })
}

fn fraction(text: &str) -> Result<f32, String> {
    number(text).and_then(|x| if (0.0..=1.0).contains(&x) { Ok(x) } else { Err("expected 0 to 1".into()) })
}
