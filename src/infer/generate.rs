//! New text: greedy or sampled, one prompt or many at once, over a KV cache.

use retune_kernels::rng::Rng;

use crate::model::{Adapter, Decoder, KvCache, Workspace};

/// How the next token is chosen. The order of the filters is llama.cpp's default: top-k, top-p, then the temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 42 }
    }
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub id: u32,
    /// Log-probability under the model (before temperature and filters).
    pub logprob: f32,
    /// The most probable tokens with their log-probabilities, best first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// What a prompt led to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    pub steps: Vec<Step>,
    /// Whether an end token was chosen (it is the last step then).
    pub ended: bool,
}

impl Generated {
    /// The ids of the answer, without the end token.
    pub fn ids(&self) -> Vec<u32> {
        let n = self.steps.len() - usize::from(self.ended);
        self.steps[..n].iter().map(|s| s.id).collect()
    }
}

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    pub max_tokens: usize,
    pub end_ids: &'a [u32],
    pub sampling: Sampling,
    /// How many alternatives each step reports.
    pub top: usize,
}

/// Tokens of all prompts that are read at once.
const PREFILL_TOKENS: usize = 2048;
/// Sequences that are generated side by side.
const SIDE_BY_SIDE: usize = 32;

/// Answers every prompt; sequences run side by side, and each gives what it would give alone.
pub fn generate(
    decoder: &Decoder,
    prompts: &[Vec<u32>],
    adapter: Option<&Adapter>,
    request: &Request,
    mut on_token: impl FnMut(usize, &Step),
) -> Vec<Generated> {
    let mut workspace = Workspace::new(0);
    let mut all = Vec::with_capacity(prompts.len());
    for (group_number, group) in prompts.chunks(SIDE_BY_SIDE).enumerate() {
        let first = group_number * SIDE_BY_SIDE;
        let mut session = Session::new(decoder, group, adapter, request, &mut workspace, first);
        session.run(|s, step| on_token(first + s, step));
        all.append(&mut session.results);
    }
    all
}

struct Session<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Adapter>,
    request: &'a Request<'a>,
    workspace: &'a mut Workspace,
    cache: KvCache,
    prompts: &'a [Vec<u32>],
    rngs: Vec<Rng>,
    results: Vec<Generated>,
}

impl<'a> Session<'a> {
    fn new(
        decoder: &'a Decoder,
        prompts: &'a [Vec<u32>],
        adapter: Option<&'a Adapter>,
        request: &'a Request,
        workspace: &'a mut Workspace,
        first: usize,
    ) -> Self {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        Self {
            cache: KvCache::new(&decoder.config, prompts.len(), longest + request.max_tokens),
            rngs: (0..prompts.len()).map(|s| Rng::new(request.sampling.seed.wrapping_add((first + s) as u64))).collect(),
            results: vec![Generated::default(); prompts.len()],
            decoder,
            adapter,
            request,
            workspace,
            prompts,
        }
    }

    fn run(&mut self, mut on_token: impl FnMut(usize, &Step)) {
        if self.request.max_tokens == 0 {
            return;
        }
        // Prompts are read one at a time, long ones in pieces, so that memory stays small.
        for s in 0..self.prompts.len() {
            let ids = &self.prompts[s];
            let mut logits = Vec::new();
            for piece in ids.chunks(PREFILL_TOKENS) {
                let stream = self.cache.append(&[(s, piece)]);
                logits = self.decoder.logits(&stream, &[piece.len() - 1], self.adapter, self.workspace, Some(&mut self.cache));
            }
            if !logits.is_empty() {
                self.choose(s, &logits, &mut on_token);
            }
        }
        loop {
            let next: Vec<(usize, [u32; 1])> = (0..self.prompts.len())
                .filter(|&s| !self.results[s].ended && self.results[s].steps.len() < self.request.max_tokens)
                .filter_map(|s| Some((s, [self.results[s].steps.last()?.id])))
                .collect();
            if next.is_empty() {
                return;
            }
            let new: Vec<(usize, &[u32])> = next.iter().map(|(s, id)| (*s, id.as_slice())).collect();
            let stream = self.cache.append(&new);
            let rows: Vec<usize> = (0..next.len()).collect();
            let logits = self.decoder.logits(&stream, &rows, self.adapter, self.workspace, Some(&mut self.cache));
            for ((s, _), logits) in next.iter().zip(logits.chunks_exact(self.decoder.config.vocab_size)) {
                self.choose(*s, logits, &mut on_token);
            }
        }
    }

    fn choose(&mut self, s: usize, logits: &[f32], on_token: &mut impl FnMut(usize, &Step)) {
        let log_sum = log_sum_exp(logits);
        let id = pick(logits, &self.request.sampling, &mut self.rngs[s]);
        let top = best(logits, self.request.top).into_iter().map(|i| (i as u32, logits[i] - log_sum)).collect();
        let step = Step { id: id as u32, logprob: logits[id] - log_sum, top };
        self.results[s].ended = self.request.end_ids.contains(&step.id);
        on_token(s, &step);
        self.results[s].steps.push(step);
    }
}

/// `log(sum(exp(logits)))`
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    max + sum.ln() as f32
}

/// Indices of the `n` largest logits, best first; of equal ones the smaller index first.
fn best(logits: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let n = n.min(order.len());
    let by_value = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if n == 0 {
        return Vec::new();
    }
    if n < order.len() {
        order.select_nth_unstable_by(n - 1, by_value);
        order.truncate(n);
    }
    order.sort_unstable_by(by_value);
    order
}

fn pick(logits: &[f32], sampling: &Sampling, rng: &mut Rng) -> usize {
    if sampling.temperature <= 0.0 {
        return best(logits, 1).first().copied().unwrap_or(0);
    }
    let keep = if sampling.top_k == 0 { logits.len() } else { sampling.top_k };
    let order = best(logits, keep);
    let max = f64::from(logits[order[0]]);
    let exp = |scale: f64| -> Vec<f64> { order.iter().map(|&i| ((f64::from(logits[i]) - max) / scale).exp()).collect() };
    let plain = exp(1.0);
    let total: f64 = plain.iter().sum();
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < order.len() && (kept == 0 || mass < f64::from(sampling.top_p)) {
        mass += plain[kept] / total;
        kept += 1;
    }
    let weights = exp(f64::from(sampling.temperature));
    let mut point = rng.uniform() * weights[..kept].iter().sum::<f64>();
    for (place, weight) in weights[..kept].iter().enumerate() {
        point -= weight;
        if point < 0.0 {
            return order[place];
        }
    }
    order[kept - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 2.9];

    #[test]
    fn greedy_takes_the_largest_and_top_k_one_too() {
        assert_eq!(pick(&LOGITS, &Sampling::default(), &mut Rng::new(1)), 1);
        let one = Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() };
        assert!((0..50).all(|seed| pick(&LOGITS, &one, &mut Rng::new(seed)) == 1));
        assert_eq!(best(&LOGITS, 3), [1, 4, 2]);
    }

    #[test]
    fn sampling_follows_the_probabilities_and_top_p_cuts_the_tail() {
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut rng = Rng::new(7);
        let mut counts = [0usize; 5];
        for _ in 0..20_000 {
            counts[pick(&LOGITS, &sampling, &mut rng)] += 1;
        }
        let total = log_sum_exp(&LOGITS);
        for (count, logit) in counts.iter().zip(LOGITS) {
            let expected = f64::from((logit - total).exp());
            assert!((*count as f64 / 20_000.0 - expected).abs() < 0.012, "{counts:?}");
        }
        let nucleus = Sampling { temperature: 1.0, top_p: 0.5, ..Sampling::default() };
        let mut rng = Rng::new(7);
        assert!((0..2_000).all(|_| [1, 4].contains(&pick(&LOGITS, &nucleus, &mut rng))));
    }
}
