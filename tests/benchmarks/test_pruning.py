import json

WORDS = (
    "--size 300 --test-size 100 --epochs 1 --members 2 --channels 4 --batch-size 32 --seeds 0 1 --pruned 0.5 "
    "--scores random el2n supervised --budgets epochs --out out"
)


def test_a_row_for_every_run_and_none_twice(benchmark, test_data, tmp_path):
    def run(*more: str) -> str:
        return benchmark("pruning", *WORDS.split(), *more, TLDR_TEST_DATA=str(test_data))

    said = run()
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert [(row["score"], row["seed"]) for row in rows] == [
        (score, seed) for seed in (0, 1) for score in ("everything", "random", "el2n", "supervised")
    ]
    assert [(row["kept"], row["steps"]) for row in rows] == 2 * [(300, 9), *[(150, 5)] * 3]
    assert all(0 <= row["top1"] <= 100 for row in rows)
    assert said.count("pictures, 5 steps") == 6
    assert "| 0.5 | el2n | " in (tmp_path / "out" / "results.md").read_text()
    assert run().count("pictures,") == 0  # what is there is not computed again
    more = run("--budgets", "epochs", "steps")
    assert more.count("pictures, 9 steps") == 6
    assert more.count("pictures,") == 6
