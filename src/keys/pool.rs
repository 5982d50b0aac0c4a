//! DEKs that were wrapped ahead of need, so that creating an object does not wait for the token.
//!
//! Each carries the id that it will have and is used once. One that was wrapped longer ago than the
//! cache's hard age is dropped: its KEK may have been destroyed behind our back.

use super::{FreshDek, KekRef};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Over all organizations: 512 KiB of locked memory.
const MOST: usize = 16 * 1024;

/// What DEKs are wrapped for: they are interchangeable within one recipe only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Recipe {
    pub organization: u32,
    /// One for each pair of the context.
    pub keks: Vec<KekRef>,
    pub context: Vec<(String, String)>,
}

pub struct Pool {
    depth: usize,
    life: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    shelves: HashMap<Recipe, Shelf>,
    pooled: usize,
    serial: u64,
}

struct Shelf {
    /// Tells a shelf from one of the same recipe that was cleared away.
    serial: u64,
    ready: VecDeque<(Instant, FreshDek)>,
    ordered: usize,
}

/// Wraps that somebody is to have done for the shelf with this serial number.
pub struct Order {
    pub recipe: Recipe,
    pub wraps: usize,
    serial: u64,
}

impl Pool {
    /// `depth` DEKs for each recipe, each for at most `life` after its wrapping.
    pub fn new(depth: usize, life: Duration) -> Self {
        Pool { depth, life, state: Mutex::default() }
    }

    /// A DEK if there is one, and what to order if the shelf is half empty.
    pub fn take(&self, recipe: &Recipe) -> (Option<FreshDek>, Option<Order>) {
        if self.depth == 0 {
            return (None, None);
        }
        let now = Instant::now();
        let state = &mut *self.state.lock();
        let shelf = state.shelves.entry(recipe.clone()).or_insert_with(|| {
            state.serial += 1;
            Shelf { serial: state.serial, ready: VecDeque::new(), ordered: 0 }
        });
        let before = shelf.ready.len();
        let mut dek = None;
        while dek.is_none()
            && let Some((wrapped, candidate)) = shelf.ready.pop_front()
        {
            dek = (now < wrapped + self.life).then_some(candidate);
        }
        state.pooled -= before - shelf.ready.len();
        let coming = shelf.ready.len() + shelf.ordered;
        let wraps =
            if coming <= self.depth / 2 { (self.depth - coming).min(MOST.saturating_sub(state.pooled)) } else { 0 };
        shelf.ordered += wraps;
        let order = (wraps > 0).then(|| Order { recipe: recipe.clone(), wraps, serial: shelf.serial });
        (dek, order)
    }

    /// One wrap of an order is done, or will not be (`None`). A DEK for a shelf that was cleared is dropped.
    pub fn deliver(&self, order: &Order, dek: Option<FreshDek>) {
        let state = &mut *self.state.lock();
        if let Some(shelf) = state.shelves.get_mut(&order.recipe).filter(|shelf| shelf.serial == order.serial) {
            shelf.ordered = shelf.ordered.saturating_sub(1);
            if let Some(dek) = dek {
                shelf.ready.push_back((Instant::now(), dek));
                state.pooled += 1;
            }
        }
    }

    pub fn forget_where(&self, goes: impl Fn(&Recipe) -> bool) {
        self.keep(|recipe, _| !goes(recipe));
    }

    /// Drops DEKs past their life, and shelves that nothing is on or coming to.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.keep(|_, shelf| {
            shelf.ready.retain(|(wrapped, _)| now < *wrapped + self.life);
            !shelf.ready.is_empty() || shelf.ordered > 0
        });
    }

    fn keep(&self, mut stays: impl FnMut(&Recipe, &mut Shelf) -> bool) {
        let state = &mut *self.state.lock();
        state.shelves.retain(|recipe, shelf| stays(recipe, shelf));
        state.pooled = state.shelves.values().map(|shelf| shelf.ready.len()).sum();
    }

    pub fn len(&self) -> usize {
        self.state.lock().pooled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{LockedKey, random};
    use crate::keys::WrappedDek;
    use std::sync::Arc;

    fn dek() -> FreshDek {
        let wrapped = WrappedDek { dek_id: random(), layers: Vec::new(), ciphertext: Vec::new() };
        FreshDek { key: Arc::new(LockedKey::generate().unwrap()), wrapped }
    }

    fn recipe(organization: u32) -> Recipe {
        Recipe { organization, keks: vec![KekRef { id: [1; 16], version: 1 }], context: Vec::new() }
    }

    fn filled(depth: usize, life: Duration) -> Pool {
        let pool = Pool::new(depth, life);
        let (none, order) = pool.take(&recipe(1));
        let order = order.unwrap();
        assert!(none.is_none() && order.wraps == depth);
        (0..depth).for_each(|_| pool.deliver(&order, Some(dek())));
        pool
    }

    #[test]
    fn a_shelf_is_ordered_full_once_it_is_half_empty() {
        let pool = filled(8, Duration::from_secs(60));
        let taken: Vec<_> = (0..4).map(|_| pool.take(&recipe(1))).collect();
        assert!(taken.iter().all(|(dek, _)| dek.is_some()));
        let orders: Vec<_> = taken.iter().map(|(_, order)| order.as_ref().map_or(0, |order| order.wraps)).collect();
        assert_eq!(orders, [0, 0, 0, 4]);
        assert!(pool.take(&recipe(1)).1.is_none(), "what is ordered counts");
        let ids: std::collections::HashSet<_> =
            taken.iter().map(|(dek, _)| dek.as_ref().unwrap().wrapped.dek_id).collect();
        assert_eq!((ids.len(), pool.len()), (4, 3));
    }

    #[test]
    fn other_recipes_share_nothing() {
        let pool = filled(4, Duration::from_secs(60));
        assert!(pool.take(&recipe(2)).0.is_none());
        assert_eq!(pool.len(), 4);
    }

    #[test]
    fn nothing_is_delivered_to_a_cleared_shelf() {
        let pool = Pool::new(4, Duration::from_secs(60));
        let order = pool.take(&recipe(1)).1.unwrap();
        pool.deliver(&order, Some(dek()));
        pool.forget_where(|recipe| recipe.organization == 1);
        pool.deliver(&order, Some(dek()));
        assert_eq!(pool.len(), 0);
        assert!(pool.take(&recipe(1)).0.is_none());
    }

    #[test]
    fn an_old_dek_is_not_used() {
        let pool = filled(4, Duration::ZERO);
        assert!(pool.take(&recipe(1)).0.is_none());
        pool.sweep();
        assert_eq!(pool.len(), 0);
    }
}
