"""Answers as trees: against sets of beginnings, put together in a plain loop."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allrec.llm.likelihood import answer_trees, tree_mask
from allrec.llm.prompt import Packed


def grow(*users):
    """The trees of users, each a list of answers."""
    answers = [answer for user in users for answer in user]
    return answer_trees(Packed.of(answers), np.array([len(user) for user in users], np.int64))


def beginnings(trees, user):
    """What each node of a user has read since the root, from its ancestors; None where the row is padded."""
    columns = [[column for column in line if column >= 0] for line in trees.ancestors[user]]
    return [tuple(trees.tokens[user][line[1:]]) if line else None for line in columns]


def test_a_shared_beginning_is_one_node():
    trees = grow([[5, 6, 9], [5, 7, 9]])
    # The root, 5 once, then 6 and 7; 9 ends both answers and is not read.
    assert sorted(beginnings(trees, 0)) == [(), (5,), (5, 6), (5, 7)]


def test_users_share_nothing():
    trees = grow([[5, 9]], [[5, 9]])
    assert trees.tokens.tolist() == [[0, 5], [0, 5]]
    assert trees.sources.tolist() == [0, 1, 2, 3]


def test_a_node_sees_its_ancestors_and_itself():
    trees = grow([[5, 6, 9], [5, 7, 9]], [[8]])
    sees = tree_mask(trees, torch.device("cpu")).int().tolist()
    assert sees[0] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert sees[1][0] == [1, 0, 0, 0]


def test_padding_sees_nothing_and_is_seen_by_nobody():
    trees = grow([[5, 6, 7, 9]], [[8]])
    sees = tree_mask(trees, torch.device("cpu"))[1]
    assert not sees[1:].any()
    assert not sees[:, 1:].any()


def test_an_answer_of_one_token_has_no_node_but_the_root():
    trees = grow([[5], [6]], [])
    assert trees.tokens.tolist() == [[0], [0]]
    assert trees.sources.tolist() == [0, 0]


def test_nobody_has_trees():
    assert grow().tokens.shape == (0, 0)


USERS = st.lists(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=6), min_size=1, max_size=4)


@settings(max_examples=60)
@given(users=USERS)
def test_each_token_is_predicted_by_the_node_of_what_came_before_it(users):
    trees = grow(*users)
    width = trees.tokens.shape[1]
    nodes = [beginnings(trees, user) for user in range(len(users))]
    expected = [(user, tuple(answer[:place])) for user, answers in enumerate(users) for answer in answers
                for place in range(len(answer))]  # fmt: skip
    assert [(source // width, nodes[source // width][source % width]) for source in trees.sources] == expected
    for user, answers in enumerate(users):
        distinct = {tuple(answer[:length]) for answer in answers for length in range(len(answer))} | {()}
        assert sorted(node for node in nodes[user] if node is not None) == sorted(distinct)
        assert all(trees.depths[user, place] == len(node) for place, node in enumerate(nodes[user]) if node is not None)
