"""What messages about pretrained backbones advise, done."""

import pickle

import numpy as np
import torch
from tests.backbones.test_importer import PublicLayout
from tests.remedies import refused

from allrec.backbones.pretrained import import_sasrec, load_checkpoint, read_vectors
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data import prepare


class Vectors:
    """Item vectors in a folder: ``write`` them, then ``read`` them for a data set of items a and b."""

    def __init__(self, folder):
        self.path, self.ids = folder / "items.npy", folder / "item_ids.txt"

    def write(self, vectors=None, ids="a\nb\n"):
        np.save(self.path, np.eye(2) if vectors is None else vectors)
        self.ids.write_text(ids, encoding="utf-8")

    def read(self, **given):
        return read_vectors(str(self.path), given.get("ids"), "item", ["a", "b"]).vectors.tolist()


def test_the_files_that_numpy_and_a_list_of_ids_wrote_are_given(tmp_path):
    vectors = Vectors(tmp_path)
    with refused("Give the .npy file that numpy.save wrote."):
        vectors.read()
    vectors.write()
    with refused("Give the ids, one a line."):
        vectors.read(ids=str(tmp_path / "nowhere.txt"))
    assert vectors.read(ids=str(vectors.ids)) == vectors.read() == [[1, 0], [0, 1]]


def test_training_that_broke_off_is_repeated(tmp_path):
    vectors = Vectors(tmp_path)
    vectors.write(np.array([[1.0], [np.nan]]))
    with refused("has a number in row {} that is not finite. Was its training broken off?"):
        vectors.read()
    vectors.write(np.array([[1.0], [2.0]]))
    assert vectors.read() == [[1], [2]]
    state = PublicLayout("query", "zeroed").state_dict()
    torch.save(state | {"last_layernorm.bias": torch.full((8,), torch.nan)}, tmp_path / "c.pth")
    with refused("has numbers in {} that are not finite. Was its training broken off?"):
        import_sasrec(tmp_path / "c.pth", heads=2)
    torch.save(state, tmp_path / "c.pth")
    assert import_sasrec(tmp_path / "c.pth", heads=2).num_items == 12


def test_the_ids_that_were_prepared_are_given_as_utf_8(tmp_path):
    vectors = Vectors(tmp_path)
    vectors.write(ids="x\ny\n")
    with refused("Give the ids that were prepared."):
        vectors.read()
    vectors.ids.write_bytes("a\nbä\n".encode("latin-1"))
    with refused("{} is no UTF-8 text: {}. Save it as UTF-8."):
        vectors.read()
    vectors.ids.write_bytes("a\nbä\n".encode())
    assert vectors.read() == [[1, 0], [0, 0]]


def test_a_checkpoint_of_this_catalogue_is_given(tmp_path):
    with refused("Give the checkpoint that torch.save wrote."):
        import_sasrec(tmp_path / "c.pth")
    torch.save(PublicLayout("query", "zeroed").state_dict(), tmp_path / "c.pth")
    datasets = []
    for num_items in (3, 12):
        rows = [f"{user},{item:02d}" for user in "ab" for item in range(num_items)]
        (tmp_path / f"{num_items}.csv").write_text("\n".join(["user_id,item_id", *rows]))
        datasets.append(prepare(tmp_path / f"{num_items}.csv", tmp_path / f"of-{num_items}"))
    with refused("Give one that was trained on this catalogue, its item n + 1 being item n here."):
        load_checkpoint(str(tmp_path / "c.pth"), datasets[0], SASRecConfig(heads=2))
    assert isinstance(load_checkpoint(str(tmp_path / "c.pth"), datasets[1], SASRecConfig(heads=2)), SASRec)


def test_the_state_dict_alone_is_saved(tmp_path):
    path, model = tmp_path / "c.pth", PublicLayout("query", "zeroed")
    path.write_bytes(pickle.dumps(model))
    with refused("{} holds more than tensors, or is no checkpoint: {}. {}") as caught:
        import_sasrec(path)
    # What the message says: with the code that wrote it, save the state dict alone.
    saving = str(caught.value).partition("with the code that wrote it: ")[2].partition(", or ")[0]
    exec(saving, {"torch": torch, "model": model, "path": path})
    assert import_sasrec(path, heads=2).num_items == 12
    pair = [{"item_num": 12}, model.state_dict()]
    torch.save(pair, path)
    with refused("{} holds a {}, expected a dict of nothing but tensors. {}") as caught:
        import_sasrec(path)
    saving = str(caught.value).partition(", or ")[2].partition(" for a pair")[0]
    exec(saving, {"torch": torch, "pair": pair, "path": path})
    assert import_sasrec(path, heads=2).num_items == 12
