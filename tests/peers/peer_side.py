"""The other libraries' side of the exchange; runs in `.venv-peers`, where nb_sae is not installed.

    python peer_side.py write FOLDER    dictionaries as each library saves them, with the latents that it gives
    python peer_side.py read FOLDER     loads what nb_sae exported there, and writes the latents beside it

Every case is a folder; `expected.safetensors` in it holds rows `x`, `latents` and `x_hat` of the library's own loader.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

D_IN, D_OUT, D_SAE, K, ROWS = 8, 6, 24, 4, 48
WIDTHS = [6, 12, 24]
EXPECTED = "expected.safetensors"

Encoded = tuple[Tensor, Tensor]
Cases = dict[str, Callable[[Path, Tensor], "Encoded | None"]]


def rows() -> Tensor:
    return torch.randn(ROWS, D_IN, generator=torch.Generator().manual_seed(7)) * 1.5 + 0.4


def randomise(module: torch.nn.Module, seed: int, *, unequal: bool = True) -> None:
    """Weights that leave no default untested: biases not zero, decoder rows of unequal norm, positive thresholds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(noise.abs() * 0.5 if name.endswith("threshold") else noise * 0.5)
        if not unequal:
            decoder = getattr(module, "W_dec", None)
            if decoder is not None:
                decoder.div_(decoder.norm(dim=-1, keepdim=True))


# ---------------------------------------------------------------- SAELens


def saelens_cases() -> Cases:
    from sae_lens import SAE
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
    from sae_lens.saes.jumprelu_sae import (
        JumpReLUSAE,
        JumpReLUSAEConfig,
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
    )
    from sae_lens.saes.matryoshka_batchtopk_sae import (
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
    )
    from sae_lens.saes.sae import SAEMetadata, TrainStepInput
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
    from sae_lens.saes.transcoder import JumpReLUTranscoder, JumpReLUTranscoderConfig, Transcoder, TranscoderConfig
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    size: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE}
    about = SAEMetadata(model_name="demo", hook_name="blocks.0.hook_resid_post", hook_name_out="blocks.0.hook_mlp_out")

    def whitening(x: Tensor) -> ActivationWhitening:
        values, vectors = torch.linalg.eigh(x.T.cov())
        matrix = (vectors / values.sqrt()).contiguous()
        return ActivationWhitening(x.mean(0), matrix, (vectors * values.sqrt()).T.contiguous())

    def inference(kind: Any, config: Any, seed: int, **settings: Any) -> Callable[[Path, Tensor], Encoded]:
        def make(folder: Path, x: Tensor) -> Encoded:
            sae = kind(config(**size, metadata=about, **settings))
            randomise(sae, seed)
            sae.save_model(folder)
            loaded = SAE.load_from_disk(folder)
            return loaded.encode(x), loaded(x)

        return make

    def training(
        kind: Any,
        config: Any,
        seed: int,
        *,
        checkpoint: bool,
        scale: float | None = None,
        whiten: bool = False,
        **settings: Any,
    ) -> Callable[[Path, Tensor], Encoded]:
        def make(folder: Path, x: Tensor) -> Encoded:
            if scale is not None:
                settings["normalize_activations"] = "expected_average_only_in"
            if whiten:
                settings["normalize_activations"] = "covariance_whitening"
            sae = kind(config(**size, metadata=about, **settings))
            randomise(sae, seed)
            seen = x if scale is None else x * scale
            scaler = ActivationScaler()
            if whiten:
                whitened = whitening(x)
                seen = (x - whitened.mean) @ whitened.matrix
            for _ in range(500 if hasattr(sae, "topk_threshold") else 0):
                sae.training_forward_pass(
                    TrainStepInput(
                        sae_in=seen, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
                    )
                )
            if checkpoint:
                sae.save_model(folder)
                if scale is not None:
                    scaler.scaling_factor = scale
                    scaler.save(str(folder / "activation_scaler.json"))
                    sae.fold_activation_norm_scaling_factor(scale)
                if whiten:
                    scaler.whitening = whitened
                    scaler.save(str(folder / "activation_scaler.json"))
                    sae.fold_activation_whitening(whitened.mean, whitened.matrix, whitened.inverse_matrix)
                # What the library itself makes of it for inference is what the import has to give.
                finished = folder / "finished"
                sae.save_inference_model(finished)
                loaded = SAE.load_from_disk(finished)
                for one in finished.iterdir():
                    one.unlink()
                finished.rmdir()
            else:
                sae.save_inference_model(folder)
                runner = {"sae": {"matryoshka_widths": settings.get("matryoshka_widths")}}
                (folder / "runner_cfg.json").write_text(json.dumps(runner))
                loaded = SAE.load_from_disk(folder)
            return loaded.encode(x), loaded(x)

        return make

    plain = {"apply_b_dec_to_input": False}
    batch = (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)
    nested = (MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig)
    jump = (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig)
    widths = {"matryoshka_widths": WIDTHS}
    return {
        "standard": inference(StandardSAE, StandardSAEConfig, 1),
        "standard-no-pre-bias": inference(StandardSAE, StandardSAEConfig, 2, **plain),
        "standard-layer-norm": inference(StandardSAE, StandardSAEConfig, 3, normalize_activations="layer_norm"),
        "topk": inference(TopKSAE, TopKSAEConfig, 4, k=K),
        "topk-rescaled": inference(TopKSAE, TopKSAEConfig, 5, k=K, rescale_acts_by_decoder_norm=True),
        "topk-constant-norm": inference(TopKSAE, TopKSAEConfig, 6, k=K, normalize_activations="constant_norm_rescale"),
        "jumprelu": inference(JumpReLUSAE, JumpReLUSAEConfig, 7),
        "gated": inference(GatedSAE, GatedSAEConfig, 8),
        "gated-no-pre-bias": inference(GatedSAE, GatedSAEConfig, 9, **plain),
        "transcoder": inference(Transcoder, TranscoderConfig, 10, d_out=D_OUT, **plain),
        "jumprelu-transcoder": inference(JumpReLUTranscoder, JumpReLUTranscoderConfig, 11, d_out=D_OUT, **plain),
        "batchtopk-inference": training(*batch, 12, checkpoint=False, k=K),
        "batchtopk-checkpoint": training(*batch, 13, checkpoint=True, k=K),
        "batchtopk-checkpoint-scaled": training(*batch, 14, checkpoint=True, scale=1.7, k=K),
        "batchtopk-checkpoint-whitened": training(*batch, 18, checkpoint=True, whiten=True, k=K),
        "jumprelu-checkpoint-whitened": training(*jump, 19, checkpoint=True, whiten=True, **plain),
        "matryoshka-inference": training(*nested, 15, checkpoint=False, k=K, **widths),
        "matryoshka-checkpoint": training(*nested, 16, checkpoint=True, k=K, **widths),
        "jumprelu-checkpoint": training(*jump, 17, checkpoint=True),
    }


def read_saelens(path: Path, x: Tensor) -> Encoded:
    from sae_lens import SAE

    sae = SAE.load_from_disk(path)
    sae.save_model(path / "again")
    return sae.encode(x), sae(x)


# ---------------------------------------------------------------- dictionary_learning


def dictionary_learning_cases() -> Cases:
    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    def case(kind: Any, seed: int, *args: Any, threshold: float | None = None) -> Callable[[Path, Tensor], Encoded]:
        def make(folder: Path, x: Tensor) -> Encoded:
            ae = kind(D_IN, D_SAE, *args)
            randomise(ae, seed)
            if threshold is not None:
                ae.threshold.fill_(threshold)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(ae.state_dict(), folder / "ae.pt")
            trainer = {"dict_class": kind.__name__, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3}
            trainer |= {"lm_name": "demo", "submodule_name": "resid_post_layer_3", **({"k": args[0]} if args else {})}
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"d_submodule": D_IN}}))
            return read_dictionary_learning(folder, x)

        return make

    sizes = [width - before for before, width in zip([0, *WIDTHS], WIDTHS, strict=False)]
    return {
        "AutoEncoder": case(AutoEncoder, 21),
        "AutoEncoderNew": case(AutoEncoderNew, 22),
        "GatedAutoEncoder": case(GatedAutoEncoder, 23),
        "AutoEncoderTopK": case(AutoEncoderTopK, 24, K, threshold=0.3),
        "BatchTopKSAE": case(BatchTopKSAE, 25, K, threshold=0.9),
        "BatchTopKSAE-unset": case(BatchTopKSAE, 26, K),
        "MatryoshkaBatchTopKSAE": case(MatryoshkaBatchTopKSAE, 27, K, sizes, threshold=0.8),
        "JumpReluAutoEncoder": case(JumpReluAutoEncoder, 28),
    }


def read_dictionary_learning(path: Path, x: Tensor) -> Encoded:
    from dictionary_learning.utils import load_dictionary

    ae, _ = load_dictionary(str(path), "cpu")
    latents = ae.encode(x)
    return latents, ae.decode(latents)


# ---------------------------------------------------------------- sparsify


def sparsify_cases() -> Cases:
    from sparsify import SparseCoder, SparseCoderConfig

    def case(seed: int, **settings: Any) -> Callable[[Path, Tensor], Encoded]:
        def make(folder: Path, x: Tensor) -> Encoded:
            sae = SparseCoder(D_IN, SparseCoderConfig(num_latents=D_SAE, k=K, **settings))
            randomise(sae, seed)
            sae.save_to_disk(folder)
            return read_sparsify(folder, x)

        return make

    return {"topk": case(31), "transcode": case(32, transcode=True)}


def read_sparsify(path: Path, x: Tensor) -> Encoded:
    from sparsify import SparseCoder

    sae = SparseCoder.load_from_disk(path)
    values, indices, _ = sae.encode(x)
    return torch.zeros(len(x), sae.num_latents).scatter(1, indices, values), sae.decode(values, indices)


# ---------------------------------------------------------------- overcomplete


def overcomplete_cases() -> Cases:
    from overcomplete.sae import SAE, BatchTopKSAE, JumpSAE, TopKSAE

    def case(
        kind: Any, seed: int, *, whole: bool = False, untied: bool = False, **settings: Any
    ) -> Callable[[Path, Tensor], Encoded]:
        def make(folder: Path, x: Tensor) -> Encoded:
            sae = kind(D_IN, D_SAE, **settings)
            if untied:
                sae = sae.untied(bias=True)
            randomise(sae, seed)
            if isinstance(sae, JumpSAE):
                sae.thresholds.data.sub_(1.0)
            if isinstance(sae, BatchTopKSAE):
                sae.encode(x)
            sae.eval()
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(sae if whole else sae.state_dict(), folder / "sae.pth")
            _, latents = sae.encode(x)
            options = {"k": settings.get("top_k")} if kind is TopKSAE and not whole else {}
            if kind is BatchTopKSAE and not whole:
                options = {"threshold": float(sae.running_threshold)}
            (folder / "options.json").write_text(json.dumps({**options, **({"trust_pickle": True} if whole else {})}))
            return latents, sae.decode(latents)

        return make

    return {
        "SAE": case(SAE, 41),
        "SAE-untied": case(SAE, 42, untied=True),
        "TopKSAE": case(TopKSAE, 43, top_k=K),
        "BatchTopKSAE": case(BatchTopKSAE, 44, top_k=K * ROWS),
        "JumpSAE": case(JumpSAE, 45),
        "TopKSAE-module": case(TopKSAE, 46, whole=True, top_k=K),
    }


def read_overcomplete(path: Path, x: Tensor) -> Encoded:
    from overcomplete import sae as saes

    notes = json.loads((path / "sae.json").read_text())
    settings: dict[str, Any] = {"dictionary_params": {"normalization": notes["normalization"]}}
    if notes["top_k"] is not None:
        settings["top_k"] = notes["top_k"]
    sae = getattr(saes, notes["class"])(notes["input_shape"], notes["nb_concepts"], **settings)
    sae.load_state_dict(torch.load(path / "sae.pth", weights_only=True))
    sae.eval()
    _, latents = sae.encode(x)
    return latents, sae.decode(latents) + torch.tensor(notes["nb_sae"]["b_dec"])


# ---------------------------------------------------------------- the exchange

WRITERS: dict[str, tuple[str, Callable[[], Cases]]] = {
    "saelens": ("sae-lens", saelens_cases),
    "dictionary_learning": ("dictionary-learning", dictionary_learning_cases),
    "sparsify": ("eai-sparsify", sparsify_cases),
    "overcomplete": ("overcomplete", overcomplete_cases),
}
READERS = {
    "saelens": read_saelens,
    "dictionary_learning": read_dictionary_learning,
    "sparsify": read_sparsify,
    "overcomplete": read_overcomplete,
}


@torch.no_grad()
def write(folder: Path) -> None:
    x = rows()
    for name, (package, cases) in WRITERS.items():
        for case, make in cases().items():
            place = folder / name / case
            place.mkdir(parents=True, exist_ok=True)
            made = make(place, x)
            assert made is not None
            latents, x_hat = made
            save_file(
                {"x": x, "latents": latents.detach().contiguous(), "x_hat": x_hat.detach().contiguous()},
                place / EXPECTED,
            )
        print(f"{name}: {package} {version(package)}")


@torch.no_grad()
def read(folder: Path) -> None:
    failed = 0
    for name, reader in READERS.items():
        for place in sorted(one for one in (folder / name).iterdir() if one.is_dir()):
            x = load_file(place / "x.safetensors")["x"]
            try:
                latents, x_hat = reader(place, x)
            except Exception as error:
                (place / "error.txt").write_text(f"{type(error).__name__}: {error}")
                failed += 1
                continue
            save_file(
                {"latents": latents.detach().contiguous(), "x_hat": x_hat.detach().contiguous()}, place / EXPECTED
            )
    print(f"{failed} could not be loaded" if failed else "all were loaded")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    {"write": write, "read": read}[chosen.what](chosen.folder)
    sys.exit(0)
