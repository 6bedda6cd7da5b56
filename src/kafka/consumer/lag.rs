//! How far the ends of the partitions are, and whether a broker that was away is back.

use super::thread::{LOOK_INTERVAL, Poller};

impl Poller {
    /// Notes how far the ends of the partitions are, and whether a broker that was away is back.
    pub(super) fn look(&mut self) {
        let out_of_room = self.turns.out_of_room.is_some_and(|since| since.elapsed() >= LOOK_INTERVAL);
        // While the queue is full, or a partition is paused, nothing is fetched, so nothing tells where it ends: one of those
        // is asked each time.
        let is_unknown = |partition| out_of_room || self.corrupt.contains(partition);
        for (partition, state) in self.state.partitions().iter_mut().filter(|(id, _)| !is_unknown(**id)) {
            if let Some(high) = self.group.high_watermark(*partition) {
                state.high_watermark = Some(high);
            }
        }
        if let Some(partition) = self.assignment.next_after(self.turns.looked, is_unknown) {
            self.turns.looked = partition;
            let high = self.group.ask_high_watermark(partition, LOOK_INTERVAL / 2);
            if let (Some(high), Some(state)) = (high, self.state.partitions().get_mut(&partition)) {
                state.high_watermark = Some(high);
            }
        }
        if self.state.trouble().is_some() && self.group.knows_topic(LOOK_INTERVAL) {
            *self.state.trouble() = None;
            self.check_topic_id = true;
        }
    }
}
