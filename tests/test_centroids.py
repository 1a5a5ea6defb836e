from __future__ import annotations

import pytest
import torch
from composer.utils import dist

from composer_cmi import functional as F
from composer_cmi.centroids import ClassCentroids

CPU = torch.device('cpu')


def make(n: int, d: int, c: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_f = F.log_distribution(torch.randn(n, d, generator=generator))
    return log_f, torch.randint(c, (n,), generator=generator)


def add(table: ClassCentroids, log_f: torch.Tensor, labels: torch.Tensor, finite: torch.Tensor | None = None) -> None:
    yes = torch.ones(len(labels), dtype=torch.bool)
    table.add(log_f, labels, yes, yes if finite is None else finite)


def step(table: ClassCentroids, log_f: torch.Tensor, labels: torch.Tensor, finite: torch.Tensor | None = None):
    table.clear()
    table.begin()
    add(table, log_f, labels, finite)
    table.finish()
    return table.commit()[0]


def allocated(c: int, d: int, **kwargs) -> ClassCentroids:
    table = ClassCentroids(**kwargs)
    table.allocate(c, d, CPU)
    return table


def test_first_batch_is_its_class_means():
    """Debiased: the first centroid is the mean of what was seen, not (1 - decay) of it."""
    log_f, labels = make(20, 5, 3, 0)
    table = allocated(3, 5, decay=0.999)
    step(table, log_f, labels)
    for c in range(3):
        torch.testing.assert_close(table.reference.log_centroids[c].exp(), log_f.exp()[labels == c].double().mean(0))


def test_ema_by_hand():
    """One class, decay 1/2, f = (1/4, 3/4) once then (3/4, 1/4) twice: (1/2 * 1/4 + 2 * 3/4) / 2.5 = 0.65."""
    a = torch.tensor([[0.25, 0.75]]).log()
    table = allocated(2, 2, decay=0.5)
    step(table, a, torch.tensor([0]))
    step(table, a.flip(1).repeat(2, 1), torch.tensor([0, 0]))
    assert table.reference.log_centroids[0].exp().tolist() == pytest.approx([0.65, 0.35], rel=1e-6)
    assert table.reference.known.tolist() == [True, False]
    assert table.cover(torch.tensor([0, 1, -100, 7])).tolist() == [True, False, False, False]


def test_a_class_that_is_absent_keeps_its_centroid():
    log_f, _ = make(40, 4, 2, 1)
    table = allocated(2, 4)
    step(table, log_f[:8], torch.zeros(8, dtype=torch.long))
    before = table.reference.log_centroids[0].clone()
    for i in range(8, 40, 8):
        step(table, log_f[i : i + 8], torch.ones(8, dtype=torch.long))
    torch.testing.assert_close(table.reference.log_centroids[0], before, atol=0, rtol=0)


def test_any_cut_of_the_batch_gives_the_same_table():
    log_f, labels = make(23, 6, 4, 2)
    whole, cut = allocated(4, 6), allocated(4, 6)
    step(whole, log_f, labels)
    cut.begin()
    for a, b in ((0, 1), (1, 9), (9, 23)):
        add(cut, log_f[a:b], labels[a:b])
    cut.finish()
    cut.commit()
    torch.testing.assert_close(cut.tables['running'], whole.tables['running'], atol=1e-14, rtol=1e-13)


def test_replayed_and_second_passes_count_once():
    """An aborted pass is forgotten; of two finished ones (SAM) the first counts."""
    log_f, labels = make(16, 4, 3, 3)
    expected, table = allocated(3, 4), allocated(3, 4)
    step(expected, log_f, labels)
    table.clear()
    table.begin()
    add(table, log_f[:5], labels[:5])  # out of memory here
    table.begin()
    add(table, log_f, labels)
    table.finish()
    table.begin()
    add(table, log_f.flip(0), labels)  # SAM's second closure sees other features
    table.finish()
    table.commit()
    torch.testing.assert_close(table.tables['running'], expected.tables['running'], atol=0, rtol=0)


def test_a_row_that_is_not_finite_is_counted_and_leaves_no_trace():
    log_f, labels = make(6, 4, 2, 4)
    good, table = allocated(2, 4), allocated(2, 4)
    step(good, log_f[:5], labels[:5])
    finite = torch.tensor([True] * 5 + [False])
    step(table, log_f, labels, finite)
    torch.testing.assert_close(table.reference.log_centroids, good.reference.log_centroids)
    assert table.skipped == 1
    assert torch.isfinite(table.tables['running']).all()


def test_fixed_centroids_do_not_move():
    log_f, labels = make(30, 4, 2, 6)
    table = allocated(2, 4, mode='fixed')
    assert not table.fixed
    table.begin()
    add(table, log_f[:20], labels[:20])
    table.fix()
    fixed = table.reference.log_centroids.clone()
    step(table, log_f[20:], labels[20:])
    torch.testing.assert_close(table.reference.log_centroids, fixed, atol=0, rtol=0)
    assert table.fixed and table.tables['running'].abs().sum() > 0


def test_measured_values_are_those_of_the_functional():
    log_f, labels = make(50, 5, 3, 7)
    table = allocated(3, 5)
    batch = step(table, log_f, labels)
    stats = F.class_statistics(log_f, labels, 3)
    torch.testing.assert_close(table.running.cmi, F.conditional_mutual_information(stats))
    torch.testing.assert_close(table.running.mutual_information, F.mutual_information(stats))
    torch.testing.assert_close(table.running.relative_cmi, F.relative_cmi(stats))
    torch.testing.assert_close(table.statistics(batch).sums, stats.sums)
    assert table.accuracy(batch) == 1
    torch.testing.assert_close(table.prior, stats.counts / 50)


def test_thousand_classes_batches_of_one_and_one_class():
    big = allocated(1000, 8)
    step(big, *make(64, 8, 1000, 8))
    assert torch.isfinite(big.reference.log_centroids).all() and 0 < big.reference.known.sum() <= 64
    single = allocated(3, 4)
    for i in range(10):
        step(single, *make(1, 4, 3, i))
    assert torch.isfinite(single.running.cmi) and single.running.cmi >= 0
    lone = allocated(1, 4)
    step(lone, *make(16, 4, 1, 9))
    torch.testing.assert_close(lone.running.cmi, lone.running.mutual_information)


def test_fifty_thousand_steps_do_not_drift():
    log_f, labels = make(8, 4, 2, 10)
    table = allocated(2, 4)
    step(table, log_f, labels)
    expected = table.reference.log_centroids.clone()
    for _ in range(50_000):
        batch = table.tables['running']
        # What `commit` does to the table, without the derived quantities.
        table.tables['running'] = table.decay * batch + F_batch(log_f, labels, batch)
    table._refresh()
    torch.testing.assert_close(table.reference.log_centroids, expected, atol=1e-12, rtol=1e-12)
    assert torch.isfinite(table.tables['running']).all()


def F_batch(log_f: torch.Tensor, labels: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    stats = F.class_statistics(log_f, labels, 2)
    n, zero = stats.counts[:, None], torch.zeros_like(like[:, :1])
    return torch.cat([stats.sums, stats.negentropies[:, None], n, zero, n], 1)


def test_state_round_trip_is_exact_and_plain(tmp_path):
    table = allocated(3, 4, mode='fixed')
    table.begin()
    add(table, *make(9, 4, 3, 5))
    table.fix()
    for i in range(5):
        step(table, *make(9, 4, 3, i))
    torch.save(table.state_dict(), tmp_path / 'state.pt')
    loaded = ClassCentroids('fixed')
    loaded.load_state_dict(torch.load(tmp_path / 'state.pt', weights_only=True))
    loaded.allocate(3, 4, CPU)
    for name, tensor in table.tables.items():
        assert torch.equal(loaded.tables[name], tensor)
    torch.testing.assert_close(loaded.reference.log_centroids, table.reference.log_centroids, atol=0, rtol=0)
    saved = table.state_dict()
    step(table, *make(9, 4, 3, 99))
    assert not torch.equal(saved['tables']['running'], table.tables['running']), 'the state must be a copy'


def test_an_empty_state_loads_as_empty():
    table = ClassCentroids()
    table.load_state_dict(ClassCentroids().state_dict())
    assert not table.ready


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'schema_version': 99}, 'schema version 99'),
        ({'mode': 'fixed'}, "centroids='fixed'"),
        ({'num_classes': 4}, '4 classes of width 4, but this run has 3 classes'),
        ({'dim': 9}, '3 classes of width 9'),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, words):
    state = {**allocated(3, 4).state_dict(), **change}
    with pytest.raises(ValueError, match=words):
        allocated(3, 4).load_state_dict(state)


def test_a_loaded_state_is_checked_when_the_width_becomes_known():
    table = ClassCentroids()
    table.load_state_dict(allocated(3, 4).state_dict())
    with pytest.raises(ValueError, match='3 classes of width 4, but this run has 5 classes of width 4'):
        table.allocate(5, 4, CPU)


@pytest.mark.parametrize(('kwargs', 'words'), [({'mode': 'mean'}, "got 'mean'"), ({'decay': 1.0}, 'decay must lie')])
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        ClassCentroids(**kwargs)


@pytest.mark.world_size(2)
def test_ranks_with_different_classes_share_one_table():
    """Rank 0 sees class 0 only, rank 1 sees class 1 and nothing in the second batch."""
    log_f, _ = make(12, 4, 2, 11)
    rank = dist.get_global_rank()
    table, reference = allocated(2, 4), allocated(2, 4)
    step(table, log_f[6 * rank : 6 * rank + 6], torch.full((6,), rank))
    reference.begin()
    add(reference, log_f, torch.tensor([0] * 6 + [1] * 6))
    reference._finished = reference._pending / 2  # the sum over two equal ranks is the whole
    reference.commit()
    torch.testing.assert_close(table.reference.log_centroids, reference.reference.log_centroids, atol=1e-12, rtol=1e-12)
    table.clear()
    table.begin()
    if rank == 0:
        add(table, log_f[:3], torch.zeros(3, dtype=torch.long))
    table.finish()
    table.commit()
    gathered = dist.all_gather(table.tables['running'])
    assert torch.equal(gathered[0], gathered[1])
