"""What the statistics of a run cost, in a process that has torch only once they are done."""

import json
import subprocess
import sys

from layerlens import analysis
from layerlens.bench.run_statistics import STATISTICS, measure_analysis
from layerlens.run import Run
from tests.made_up_run import hybrid_curves, hybrid_kinds, planted, write_run


def test_every_statistic_is_measured_or_its_reason_given(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves()), layer_kinds=hybrid_kinds())
    report, left_out = measure_analysis(run.path)
    assert (report["tokens"], report["layers"]) == (8 * 40, 40)
    timed = set(report["seconds"]) - {"open", "all"}
    assert timed | set(left_out) == set(STATISTICS)
    assert set(left_out) == {"class_shares", "substitution_pairs"}
    assert all(hasattr(analysis, name) and hasattr(Run, name) for name in timed)
    assert report["seconds"]["all"] > sum(report["seconds"][name] for name in timed)


def test_torch_is_imported_after_the_peak_was_read(tmp_path):
    run = write_run(tmp_path / "run", planted(hybrid_curves()), layer_kinds=hybrid_kinds())
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from layerlens.bench import run_statistics\n"
        "peak, had_torch = run_statistics.peak_of_process, []\n"
        "def noted():\n"
        "    had_torch.append('torch' in sys.modules)\n"
        "    return peak()\n"
        "run_statistics.peak_of_process = noted\n"
        "report, _ = run_statistics.measure_analysis(Path(sys.argv[1]))\n"
        "print(json.dumps([had_torch, 'torch' in report['machine']]))"
    )
    done = subprocess.run([sys.executable, "-c", program, run.path], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[False], True]
