"""`make gpu` without a GPU: what it keeps, what it runs again, how it divides the time, what it reports."""

import json
import sys

import pytest

from benchmarks import environment, gpu, machine, programs, report, run, session
from benchmarks.machine import __main__ as machine_command

FACTS = {"device": "a GPU", "torch": "2", "triton": "3", "cuda": "13", "tree": "abc"}
FOREVER = float("inf")


def finished(tmp_path, **changes):
    """A session that has run one step that passes and one that fails, with its record written."""
    first = session.Session(True, tmp_path, None)
    first.run("test", command("good", 0), FOREVER)
    first.run("test", command("bad", 1), FOREVER)
    first.save(tmp_path / "make_gpu.json", {**FACTS, **changes}, 1.0)
    return first


def command(step, code, **more):
    return session.Command(step, [sys.executable, "-c", f"raise SystemExit({code})"], {}, **more)


def again(tmp_path, fresh=(), **changes):
    second = session.Session(True, tmp_path, None)
    second.resume(tmp_path / "make_gpu.json", {**FACTS, **changes}, fresh)
    for step in ("good", "bad"):
        second.run("test", command(step, 0), FOREVER)
    return [o.status for o in second.outcomes]


def test_only_what_passed_is_kept(tmp_path):
    finished(tmp_path)
    assert again(tmp_path) == ["kept", "passed"]


@pytest.mark.parametrize("change", [{name: "another"} for name in FACTS])
def test_nothing_is_kept_of_other_sources_devices_or_versions(tmp_path, change):
    finished(tmp_path)
    assert again(tmp_path, **change) == ["passed", "passed"]


def test_fresh_runs_a_part_again(tmp_path):
    finished(tmp_path)
    assert again(tmp_path, fresh=["test"]) == ["passed", "passed"]
    assert again(tmp_path, fresh=["build"]) == ["kept", "passed"]


def test_a_kept_step_of_a_later_run_stays_in_the_record(tmp_path):
    path = tmp_path / "make_gpu.json"
    finished(tmp_path)
    second = session.Session(True, tmp_path, None)
    second.resume(path, FACTS, [])
    second.run("bench", command("more", 0), FOREVER)
    second.save(path, FACTS, 1.0)
    record = json.loads(path.read_text())
    assert [(s["step"], s["status"]) for s in record["steps"]] == [("more", "passed"), ("good", "passed")]


def test_a_build_whose_result_is_gone_runs_again(tmp_path):
    made = tmp_path / "library.so"
    made.touch()
    first = session.Session(True, tmp_path, None)
    first.run("build", command("compile", 0, makes=[made]), FOREVER)
    first.save(tmp_path / "make_gpu.json", FACTS, 1.0)
    statuses = []
    for exists in (True, False):
        if not exists:
            made.unlink()
        later = session.Session(True, tmp_path, None)
        later.resume(tmp_path / "make_gpu.json", FACTS, [])
        later.run("build", command("compile", 0, makes=[made]), FOREVER)
        statuses.append(later.outcomes[0].status)
    assert statuses == ["kept", "passed"]


def test_a_step_that_stops_for_want_of_time_is_unfinished(tmp_path):
    one = session.Session(True, tmp_path, None)
    one.run("bench", command("suite", session.UNFINISHED), FOREVER)
    one.run("test", command("judged", session.UNFINISHED, judge=lambda code, output: f"code {code}"), FOREVER)
    assert [o.status for o in one.outcomes] == ["unfinished", "failed"]


def test_the_hash_of_the_sources_follows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    for name in session.SOURCES[:-1]:
        (tmp_path / name / "results").mkdir(parents=True)
    file = tmp_path / "setup.py"
    file.write_text("one")
    before = session.tree()
    (tmp_path / "benchmarks/results/x.json").write_text("{}")
    assert session.tree() == before
    file.write_text("two")
    assert session.tree() != before


def test_a_part_alone_has_all_of_the_time():
    assert gpu.shares(["bench"], gpu.TOTAL) == {"bench": gpu.TOTAL}
    assert sum(gpu.shares(list(gpu.PARTS), gpu.TOTAL).values()) == pytest.approx(gpu.TOTAL)
    assert gpu.TOTAL < 600


def test_a_tool_has_to_find_its_own_bug(tmp_path, monkeypatch):
    """Not only any exit code: the report names the planted bug."""
    seen = []
    monkeypatch.setattr(gpu.shutil, "which", lambda *_, **__: "/bin/tool")
    monkeypatch.setattr(gpu, "_ensure", lambda *_: None)
    monkeypatch.setattr(gpu, "architecture", lambda _: "sm_90")
    one = session.Session(True, tmp_path, None)
    one.dry_run = False
    monkeypatch.setattr(one, "side_by_side", lambda part, commands, *_: seen.extend(commands))
    gpu.sanitize(one, FOREVER)
    planted = [c for c in seen if "planted" in c.step]
    assert [c.step.split()[0] for c in planted] == list(gpu.SANITIZERS)
    assert {c.step.split(",")[0] for c in seen if "samples" in c.step} == set(gpu.SANITIZERS)
    memcheck = planted[0].judge
    assert memcheck(gpu.FOUND, "========= Invalid __global__ write of size 4 bytes") is None
    assert "was not found" in memcheck(0, "========= ERROR SUMMARY: 0 errors")
    assert "something else" in memcheck(gpu.FOUND, "========= Program hit an error")


def test_figures_of_the_machine_are_read(tmp_path):
    assert machine.__doc__
    assert machine_command.parse("copy 4.3e+12 B/s\nnoise\npdl_gap -0.25 us\n") == {
        "copy": {"value": 4.3e12, "unit": "B/s"}, "pdl_gap": {"value": -0.25, "unit": "us"}}


def test_every_program_is_a_source():
    for source in (*programs.MACHINE, programs.PLANTED, programs.SMOKE, *programs.kernels()):
        assert (environment.ROOT / source).is_file()


def row(backend, mode, us, **more):
    return {"op": "select_topk", "name": "1x576-fp32", "backend": backend, "mode": mode, "check": "ok", "ratio": 2.5,
            "best_peer": "eager", "ours": {"median_us": us}, "roofline": {"percent": 12.3}, **more}


def test_the_short_table_shows_the_faster_backend(tmp_path):
    rows = [row("triton", "graph warm", 5.0), row("cuda", "graph warm", 3.0), row("cuda", "eager", 9.0),
            {"op": "gather_kv", "name": "x", "backend": "cuda", "mode": "", "check": "Mismatch: no"}]
    (tmp_path / "select_topk.json").write_text(json.dumps({"rows": rows}))
    _, line, wrong = report.best(tmp_path)
    assert line.split() == ["select_topk", "1x576-fp32", "cuda", "3.0", "us", "-", "9.0", "us", "12%", "2.50x", "eager"]
    assert "no speed: Mismatch" in wrong


def test_the_suite_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "tree", lambda: "abc")
    arguments = ["--quick", "--device", "cpu", "--op", "select_topk,gather_kv", "--save", str(tmp_path), "--resume"]
    assert run.main([*arguments, "--budget", "-1"]) == session.UNFINISHED
    assert "2 of 2 shapes are left" in capsys.readouterr().out
    assert run.main(arguments) == 0
    assert "measured before" not in capsys.readouterr().out
    held = {p.name: p.read_text() for p in (tmp_path / environment.device_slug("cpu")).iterdir()}
    assert run.main([*arguments, "--budget", "-1"]) == 0
    assert capsys.readouterr().out.count("measured before") == 2
    path = tmp_path / environment.device_slug("cpu") / "select_topk.json"
    assert {p.name: p.read_text() for p in path.parent.iterdir()} == held
    monkeypatch.setattr(run, "tree", lambda: "another")
    assert run.main([*arguments, "--budget", "-1"]) == session.UNFINISHED
