"""Quality of the demo MSAE on held-out faces, with PCA beside every figure.

    python benchmarks/demo_quality.py [--faces 4000] [--site image_embed] [--rows 1000000]

Bounds: FVU falls at every budget; cosine ≥ 0.9 at k = d/8; < 5 % of latents never selected within the largest
budget over the training rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import polars as pl

import nb_sae as ns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=4000)
    parser.add_argument("--site", default="image_embed")
    parser.add_argument("--tokens", default="all")
    parser.add_argument("--rows", type=int)
    arguments = parser.parse_args()
    clip = ns.load_clip("demo")
    faces = ns.demo_faces(arguments.faces, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        store = ns.ActivationStore.collect(
            clip, faces, site=arguments.site, path=f"{folder}/acts", tokens=arguments.tokens
        )
        train, test = store.split(test=0.1, seed=0)
        started = time.perf_counter()
        session = ns.Session(train, ns.SAEConfig.msae(), ns.TrainConfig(rows=arguments.rows)).run()
        seconds = time.perf_counter() - started
        dictionary = session.dictionary
        held_out = ns.analyze(dictionary, test, progress=False).quality
        seen = ns.analyze(dictionary, train, progress=False).quality
        pca = ns.pca_quality(train, test, held_out["k"].to_list()).rename({"fvu": "pca_fvu", "cosine": "pca_cosine"})
    table = held_out.select("k", "fvu", "cosine", "l0").join(pca, on="k")
    table = table.join(
        seen.select("k", pl.col("fvu").alias("train_fvu"), pl.col("unused").alias("train_unused")), on="k"
    )
    with pl.Config(float_precision=4, tbl_cols=20):
        print(table)
    eighth = store.d_in // 8
    falls = held_out["fvu"].is_sorted(descending=True)
    reached = table.filter(pl.col("k") == eighth)["cosine"]
    print(f"trained on {len(train):,} rows for {session.rows_seen:,} rows in {seconds:.0f} s; d_in={store.d_in}")
    print(f"FVU falls at every budget: {falls}")
    print(f"cosine at k = d/8 = {eighth}: {reached[0] if len(reached) else 'no such budget'} (bound ≥ 0.9)")
    print(f"never selected within the largest budget: {seen['unused'][-1]:.2%} (bound < 5 %)")


if __name__ == "__main__":
    main()
