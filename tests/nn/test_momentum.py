import pytest
import torch
from torch import nn

from tldr.nn.momentum import Queue, follow, momentum_copy
from tldr.nn.processes import gather


def test_the_copy_is_a_moving_average_of_the_parameters():
    student = nn.Linear(2, 2)
    teacher = momentum_copy(student)
    expected = student.weight.detach().clone()
    for step in range(5):
        with torch.no_grad():
            student.weight.fill_(step)
        follow(teacher, student, 0.9)
        expected = 0.9 * expected + 0.1 * step
    torch.testing.assert_close(teacher.weight.detach(), expected)


def test_the_copy_gets_no_gradient_and_shares_nothing():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = momentum_copy(student)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    mine = {tensor.data_ptr() for tensor in teacher.state_dict().values()}
    assert not mine & {tensor.data_ptr() for tensor in student.state_dict().values()}


def test_buffers_are_copied_not_averaged():
    student = nn.BatchNorm1d(2)
    teacher = momentum_copy(student)
    student(torch.randn(8, 2) * 5 + 3)
    follow(teacher, student, 0.995)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(teacher, name), getattr(student, name))


def entries(queue):
    """id -> first value of its image embedding; each text embedding is the negative of the image's."""
    n = queue.filled
    assert torch.equal(queue.image[:n], -queue.text[:n])
    return dict(zip(queue.ids[:n].tolist(), queue.image[:n, 0].tolist(), strict=True))


def add(queue, *ids):
    values = torch.tensor(ids, dtype=torch.float)[:, None].expand(-1, 2)
    queue.add(values, -values, torch.tensor(ids))


def test_the_queue_keeps_the_last_entries():
    queue = Queue(5, 2)
    assert queue.filled == 0
    add(queue, 1, 2, 3)
    assert entries(queue) == {1: 1.0, 2: 2.0, 3: 3.0}
    add(queue, 4, 5, 6)  # the batch does not divide the queue: 6 takes the place of 1
    assert entries(queue) == {2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0, 6: 6.0}
    for start in range(7, 100, 3):
        add(queue, start, start + 1, start + 2)
        assert sorted(entries(queue)) == list(range(start - 2, start + 3))


def test_a_batch_may_fill_the_queue():
    queue = Queue(3, 2)
    add(queue, 0)
    add(queue, 1, 2, 3)
    assert sorted(entries(queue)) == [1, 2, 3]


def test_a_batch_larger_than_the_queue_is_an_error_that_says_what_works():
    with pytest.raises(ValueError, match=r"queue_size=3 .* at least 4 .*80"):
        add(Queue(3, 2), 1, 2, 3, 4)


def test_the_queue_survives_saving_and_forgets_on_request():
    queue, copy = Queue(5, 2), Queue(5, 2)
    add(queue, *range(4))
    copy.load_state_dict(queue.state_dict())
    add(copy, 4, 5)
    assert sorted(entries(copy)) == [1, 2, 3, 4, 5]
    copy.clear()
    assert copy.filled == 0
    add(copy, 7)
    assert list(entries(copy)) == [7]


def test_one_process_gathers_itself():
    x = torch.randn(3, 2)
    assert torch.equal(gather(x), x)


def test_a_batch_is_checked_before_it_comes():
    Queue(3, 2).check(3)
    Queue(0, 2).check(99)  # no queue
    with pytest.raises(ValueError, match=r"queue_size=3 .* at least 4 .*80\), or 0"):
        Queue(3, 2).check(4)
