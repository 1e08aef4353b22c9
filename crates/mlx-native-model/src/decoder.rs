//! Token after token.

use mlx_native::CommandEncoder;

use crate::sampler::{Sampler, SamplerConfig};
use crate::{Result, Session};

/// Chooses tokens that continue a session's context, each from the logits after the one before.
///
/// Where the device would wait for the host between two steps ([`Pace::steps_ahead`](mlx_native::Pace::steps_ahead)) and no token is penalised for those
/// before it, the device chooses, and the next step is queued before the host has seen the token. The most probable tokens are the same then, and so are
/// those that are drawn unless a random number falls on a boundary between two of them, where rounding decides; errors are the host's.
#[derive(Debug)]
pub struct Decoder<'s, 'm> {
    session: &'s mut Session<'m>,
    sampler: Sampler,
    /// Tokens that may still be chosen.
    left: usize,
    /// Chosen last and not yet in context.
    last: Option<u32>,
    steps: Option<Steps>,
}

/// Steps that are queued together: the one that is waited for and the next. The session has inputs for two.
const AT_ONCE: usize = 2;

/// Steps that choose on the device.
#[derive(Debug)]
struct Steps {
    encoder: CommandEncoder,
    /// Steps that are queued and were not waited for.
    queued: usize,
    /// Commits of the last one.
    commits: usize,
}

impl<'s, 'm> Decoder<'s, 'm> {
    /// A decoder for `most` tokens at most.
    ///
    /// # Errors
    ///
    /// A setting out of range.
    pub fn new(session: &'s mut Session<'m>, sampler: SamplerConfig, most: usize) -> Result<Decoder<'s, 'm>> {
        let steps_ahead = session.model().device().pace().steps_ahead;
        Decoder::with_steps(session, sampler, most, steps_ahead)
    }

    /// [`new`](Self::new) for any device: whether the device chooses, where it can.
    pub(crate) fn with_steps(
        session: &'s mut Session<'m>,
        sampler: SamplerConfig,
        most: usize,
        steps_ahead: bool,
    ) -> Result<Decoder<'s, 'm>> {
        let sampler = Sampler::new(sampler)?;
        let steps = (steps_ahead && !sampler.looks_back()).then(|| Steps::new(session)).transpose()?;
        Ok(Decoder { session, sampler, left: most, last: None, steps })
    }

    /// The session. What was chosen is in its context, except the last token.
    pub fn session(&self) -> &Session<'m> {
        self.session
    }

    /// Appends `prompt` to the context and chooses the first token; `None` where none may be chosen.
    ///
    /// # Errors
    ///
    /// A prompt that is empty or does not fit the context, logits that no token can be chosen by, or an error of the device.
    pub fn first_token(&mut self, prompt: &[u32]) -> Result<Option<u32>> {
        if self.left == 0 {
            return Ok(None);
        }
        prompt.iter().for_each(|&id| self.sampler.accept(id));
        let id = self.choose(prompt)?;
        Ok(Some(self.chosen(id)))
    }

    /// Appends the token that was chosen last and chooses the next; `None` where no more may be chosen or the context is full.
    ///
    /// # Errors
    ///
    /// As [`first_token`](Self::first_token).
    pub fn next_token(&mut self) -> Result<Option<u32>> {
        let Some(last) = self.last else { return Ok(None) };
        if self.left == 0 || self.session.position() == self.session.context() {
            return Ok(None);
        }
        let id = match &mut self.steps {
            None => self.choose(&[last])?,
            Some(steps) => match steps.take(self.session, &self.sampler, last, self.left) {
                Ok((id, logit)) if logit.is_finite() => {
                    self.sampler.count_draw();
                    id
                }
                _ => self.step_again(last)?,
            },
        };
        Ok(Some(self.chosen(id)))
    }

    fn chosen(&mut self, id: u32) -> u32 {
        self.left -= 1;
        self.last = Some(id);
        id
    }

    /// The host's choice after further tokens.
    fn choose(&mut self, tokens: &[u32]) -> Result<u32> {
        let logits = self.session.forward(tokens)?;
        Ok(self.sampler.sample_from(logits)?)
    }

    /// The host's choice where the device's failed: the token, or what the host says of the failure.
    fn step_again(&mut self, last: u32) -> Result<u32> {
        if let Some(steps) = &mut self.steps {
            // What is queued is waited for.
            *steps = Steps::new(self.session)?;
        }
        self.choose(&[last])
    }
}

impl Drop for Decoder<'_, '_> {
    fn drop(&mut self) {
        // A step that nobody takes has ended when the session is free again.
        self.steps = None;
    }
}

impl Steps {
    fn new(session: &Session<'_>) -> Result<Steps> {
        Ok(Steps { encoder: session.model().device().command_encoder()?, queued: 0, commits: 0 })
    }

    /// Queues what may be queued, of at most `left` steps, and takes what the first of it chooses after `last`, with its logit.
    fn take(&mut self, session: &mut Session<'_>, sampler: &Sampler, last: u32, left: usize) -> Result<(u32, f32)> {
        let most = left.min(session.context() - session.position()).min(AT_ONCE);
        while self.queued < most {
            let before = self.encoder.in_flight();
            session.queue_step(&mut self.encoder, self.queued, last, &sampler.params(self.queued as u64))?;
            self.commits = self.encoder.in_flight() - before;
            self.queued += 1;
        }
        // The step after reads the token in what it commits first.
        self.encoder.wait_until_left(if self.queued > 1 { self.commits - 1 } else { 0 })?;
        self.queued -= 1;
        session.take_step()
    }
}

#[cfg(test)]
mod tests;
