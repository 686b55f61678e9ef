"""Embeddings from files: their order, what is missing, the fold-in, and files that are wrong."""

import numpy as np
import pytest
import torch

from allrec.backbones.base import freeze
from allrec.backbones.pretrained import External, ExternalConfig, read_vectors
from allrec.errors import InputError

IDS = ["a", "b", "c", "d"]


def write(folder, vectors, ids, noun="item"):
    np.save(folder / f"{noun}s.npy", vectors)
    (folder / f"{noun}_ids.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    return str(folder / f"{noun}s.npy")


def external(table, **settings):
    table = torch.as_tensor(table)
    model = External(len(table), ExternalConfig(items="items.npy", dim=table.shape[1], **settings))
    model.item_table.data.copy_(table)
    return freeze(model)


def test_vectors_come_in_the_data_sets_order_and_what_differs_is_counted(tmp_path):
    vectors = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    matched = read_vectors(write(tmp_path, vectors, ["c", "other", "a"]), None, "item", IDS)
    assert matched.vectors.tolist() == [[5, 6], [0, 0], [1, 2], [0, 0]]
    assert matched.vectors.dtype == torch.float32
    assert matched.is_known.tolist() == [True, False, True, False]
    assert matched.num_unknown == 1


@pytest.mark.parametrize("ids", [np.array(["d", "ünï", ""]), np.array([3, 20, 1])])
def test_ids_are_read_from_npy_too_and_given_by_path(tmp_path, ids):
    path = write(tmp_path, np.eye(3, dtype=np.float64), ["x", "y", "z"])
    np.save(tmp_path / "own.npy", ids)
    known = [str(name) for name in reversed(ids.tolist())]
    matched = read_vectors(path, str(tmp_path / "own.npy"), "item", known)
    assert matched.vectors.tolist() == np.eye(3)[::-1].tolist()


def test_text_ids_keep_their_blanks_and_may_come_from_windows(tmp_path):
    path = write(tmp_path, np.eye(3), [" a\r", "b b\u2028\r", "\r"])
    assert read_vectors(path, None, "item", [" a", "b b\u2028", ""]).is_known.all()


def test_without_users_the_mean_of_the_known_items_represents():
    model = external([[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]], max_length=3)
    users = model.encode(torch.tensor([[0, 1, -1, -1], [0, 0, 1, 2], [2, -1, -1, -1], [1, 1, 0, 0]]))
    latest = [[1 / 2, 3 / 2], [1 / 2, 3 / 2], [0, 0], [2 / 3, 3 / 3]]
    torch.testing.assert_close(users, torch.tensor(latest))


def test_features_are_two_means_in_which_later_items_weigh_more_in_the_second():
    model = external([[1.0], [10.0], [0.0]], recency=0.5)
    features = model.features(torch.tensor([[0, 2, 1, 0]]))
    plain = [1, 1, 11 / 2, 12 / 3]
    recent = [1, 1, (0.25 * 1 + 10) / 1.25, (0.125 * 1 + 0.5 * 10 + 1) / 1.625]
    torch.testing.assert_close(features, torch.tensor([list(zip(plain, recent, strict=True))]))


def test_the_fold_in_is_ridge_regression():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    model = external(np.zeros((3, 2), dtype=np.float32), penalty=0.1)
    model.fit(torch.from_numpy(x), torch.from_numpy(y))
    centred = x - x.mean(axis=0)
    penalty = 0.1 * (centred**2).sum(axis=0).mean()
    # Ridge regression is least squares with rows that ask for zeros.
    augmented = np.concatenate([centred, np.sqrt(penalty) * np.eye(4)])
    weight = np.linalg.lstsq(augmented, np.concatenate([y - y.mean(axis=0), np.zeros((4, 2))]), rcond=None)[0]
    np.testing.assert_allclose(model.weight, weight, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.bias, y.mean(axis=0) - x.mean(axis=0) @ weight, rtol=1e-5, atol=1e-6)


def test_a_linear_library_is_recovered():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 3)).astype(np.float32)
    model = external(table, penalty=1e-9)
    histories = torch.from_numpy(rng.integers(0, 40, (200, 6)))
    features = model.features(histories)[:, -1]
    users = features[:, :3] @ torch.from_numpy(rng.normal(size=(3, 3)).astype(np.float32)) + 2 * features[:, 3:] - 1
    model.fit(features, users)
    torch.testing.assert_close(model.encode(histories), users, rtol=1e-4, atol=1e-4)


def test_histories_that_are_all_alike_give_the_mean_user():
    model = external([[1.0], [2.0]])
    model.fit(torch.ones(5, 2), torch.arange(5.0)[:, None])
    assert model.encode(torch.tensor([[0]])).item() == pytest.approx((0 + 1 + 2 + 3 + 4) / 5)


def test_wrong_files_are_refused(tmp_path):
    path = write(tmp_path, np.eye(2), ["a", "b"])

    def refuses(message, vectors=None, ids=None, given=None):
        write(tmp_path, np.eye(2) if vectors is None else vectors, ids or ["a", "b"])
        with pytest.raises(InputError, match=message):
            read_vectors(path, given, "item", IDS)

    refuses(r"holds float64 of shape \[4\], expected numbers, one row for each item", np.zeros(4))
    refuses(r"holds <U1 of shape \[1, 1\]", np.array([["a"]]))
    refuses("number in row 1 that is not finite", np.array([[1.0], [np.nan]]))
    refuses(r"has 3 ids for the 2 rows of .*items.npy", ids=["a", "b", "c"])
    refuses("has the id 'a' in rows 0 and 2", ids=["a", "b", "a"])
    refuses("has no item of the data set: 'x' in the file, 'a' in the data set", ids=["x", "y"])
    refuses("no such file: .*nowhere.txt", given=str(tmp_path / "nowhere.txt"))
    np.save(tmp_path / "ids.npy", np.eye(2))
    refuses(r"ids.npy holds float64 of shape \[2, 2\], expected a row of strings", given=str(tmp_path / "ids.npy"))
    (tmp_path / "latin.txt").write_bytes("ä\nb\n".encode("latin-1"))
    refuses("no UTF-8 text", given=str(tmp_path / "latin.txt"))
    (tmp_path / "item_ids.txt").unlink()
    with pytest.raises(InputError, match=r"no ids beside .*expected item_ids.npy, item_ids.txt, item_ids"):
        read_vectors(path, None, "item", IDS)
    with pytest.raises(InputError, match=r"no such file: .*nothing\.npy"):
        read_vectors(str(tmp_path / "nothing.npy"), None, "item", IDS)


class Hostile:
    def __reduce__(self):
        return (open, ("hostile-was-here", "w"))


def test_pickles_and_archives_are_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("hostile.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    np.savez("several.npz", a=np.eye(2))
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("hostile.npy", "text.npy", "empty.npy"):
        with pytest.raises(InputError, match=rf"{name} is no \.npy file of plain numbers or strings"):
            read_vectors(name, None, "item", IDS)
    with pytest.raises(InputError, match="holds several arrays"):
        read_vectors("several.npz", None, "item", IDS)
    assert not (tmp_path / "hostile-was-here").exists()


def test_the_width_must_be_known():
    with pytest.raises(ValueError, match="width of external embeddings is not known"):
        External(3, ExternalConfig(items="items.npy"))
