//! Which rows each step trains. A pure function of the step, so that a resumed run needs no state for it.

use retune_kernels::rng::Rng;

use super::settings::TrainSettings;

/// The order of the data over a whole training.
pub struct Order {
    rows: usize,
    seed: u64,
    shuffle: bool,
    batch_size: usize,
    per_step: usize,
    steps_per_epoch: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Order {
    pub fn new(settings: &TrainSettings, rows: usize) -> Self {
        Self {
            rows,
            seed: settings.seed,
            shuffle: settings.shuffle,
            batch_size: settings.batch_size,
            per_step: settings.rows_per_step(),
            steps_per_epoch: settings.steps_per_epoch(rows),
            epoch: None,
        }
    }

    /// The micro-batches of a step (counted from 1), each a list of rows. An epoch's last step takes what is left.
    pub fn micro_batches(&mut self, step: u64) -> Vec<Vec<usize>> {
        let (epoch, within) = ((step - 1) / self.steps_per_epoch, (step - 1) % self.steps_per_epoch);
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut order: Vec<usize> = (0..self.rows).collect();
            if self.shuffle {
                // Each epoch has a stream of its own, so that any epoch can be made without the ones before it.
                Rng::new(self.seed ^ epoch.wrapping_mul(0xd134_2543_de82_ef95)).shuffle(&mut order);
            }
            self.epoch = Some((epoch, order));
        }
        let order = self.epoch.as_ref().map_or(&[][..], |(_, order)| order);
        let start = within as usize * self.per_step;
        let end = (start + self.per_step).min(self.rows);
        order[start..end].chunks(self.batch_size).map(<[usize]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(shuffle: bool) -> TrainSettings {
        TrainSettings { batch_size: 2, grad_accum: 2, shuffle, ..TrainSettings::default() }
    }

    #[test]
    fn an_epoch_holds_every_row_once_and_the_next_has_another_order() {
        let mut order = Order::new(&settings(true), 7);
        let epoch = |order: &mut Order, first: u64| -> Vec<usize> {
            (first..first + 2).flat_map(|s| order.micro_batches(s).concat()).collect()
        };
        let (one, two) = (epoch(&mut order, 1), epoch(&mut order, 3));
        for rows in [&one, &two] {
            let mut sorted = rows.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5, 6]);
        }
        assert_ne!(one, two);
        assert_eq!(epoch(&mut Order::new(&settings(true), 7), 3), two, "a resumed run sees the same rows");
    }

    #[test]
    fn without_shuffling_rows_come_in_file_order() {
        let mut order = Order::new(&settings(false), 7);
        assert_eq!(order.micro_batches(1), [vec![0, 1], vec![2, 3]]);
        assert_eq!(order.micro_batches(2), [vec![4, 5], vec![6]]);
        assert_eq!(order.micro_batches(3), [vec![0, 1], vec![2, 3]]);
    }
}
