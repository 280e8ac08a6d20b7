"""metrics.jsonl and TensorBoard files."""

import errno
import glob
import json
import threading
import time

import fake_bucket
from tensorboardX.proto import event_pb2

from gradmix_jax import stored
from gradmix_jax.training import metrics_writer
from gradmix_jax.training.metrics_writer import MetricsWriter
from gradmix_jax.workdir import storage


def read_lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def make(tmp_path, start=0):
    return MetricsWriter(str(tmp_path), start_step=start, total_steps=9, images_per_step=4)


def all_events(tmp_path):
    """The events of all event files, parsed from the TFRecord framing: length, crc, payload, crc."""
    for path in glob.glob(str(tmp_path / "tensorboard" / "*")):
        with open(path, "rb") as file:
            data = file.read()
        place = 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            yield event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length


def read_events(tmp_path):
    """{(tag, step): value}."""
    return {
        (value.tag, event.step): value.simple_value for event in all_events(tmp_path) for value in event.summary.value
    }


def test_writes_both_files(tmp_path):
    writer = make(tmp_path)
    writer.write(3, {"loss": 1.5, "steps_per_second": 2.0})
    writer.advance()
    writer.close()
    assert read_lines(tmp_path) == [{"step": 3, "loss": 1.5, "steps_per_second": 2.0}]
    assert read_events(tmp_path) == {("loss", 3): 1.5, ("steps_per_second", 3): 2.0}


def test_resume_drops_lines_after_the_checkpoint_and_half_a_line(tmp_path):
    writer = make(tmp_path)
    for step in (2, 4, 6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('\0\0{"broken}\n7\n{"step": 8, "lo')
    assert [line["step"] for line in stored.metrics(str(tmp_path))] == [2, 4, 6]
    writer = make(tmp_path, start=4)
    writer.write(6, {"loss": 60.0})
    writer.close()
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path)] == [(2, 2.0), (4, 4.0), (6, 60.0)]


def test_a_resume_hides_events_past_the_checkpoint_alone(tmp_path):
    """TensorBoard hides earlier events from the step of a START on: the last one that counts is the checkpoint's."""
    make(tmp_path, start=4).close()
    started = [event.step for event in all_events(tmp_path) if event.HasField("session_log")]
    assert started == [5]


def test_nonfinite_values_become_null(tmp_path):
    writer = make(tmp_path)
    writer.write(1, {"loss": float("nan")})
    writer.close()
    assert read_lines(tmp_path) == [{"step": 1, "loss": None}]


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, capsys):
    writer = make(tmp_path)
    writer.write(1, {"loss": 1.0})
    time.sleep(0.3)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", full)

    def train():
        for step in range(2, 40):
            writer.write(step, {"loss": 1.0, "accuracy": 0.5})
            writer.advance()
        writer.close()

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(timeout=20)
    assert not training.is_alive(), "a writer blocks training"
    assert len(read_lines(tmp_path)) == 39
    said = capsys.readouterr().err
    assert said.count("warning: cannot write TensorBoard events ([Errno 28] No space left on device)") == 1


def test_metrics_that_cannot_be_written_do_not_stop_training(tmp_path, capsys):
    writer = make(tmp_path)
    writer._file.close()
    writer._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    for step in range(1, 4):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert capsys.readouterr().err.count("warning: cannot write metrics.jsonl ([Errno 28]") == 1
    assert read_events(tmp_path)["loss", 3] == 1.0


def test_disabled_writes_nothing(tmp_path):
    writer = MetricsWriter(str(tmp_path), start_step=0, total_steps=9, images_per_step=4, enabled=False)
    writer.write(1, {"loss": 1.0})
    writer.advance()
    writer.close()
    assert not list(tmp_path.iterdir())


def test_nothing_to_read(tmp_path):
    assert stored.metrics(str(tmp_path)) == []


def test_metrics_of_a_bucket_are_copied_before_a_checkpoint_at_times_and_at_the_end(tmp_path, monkeypatch, capsys):
    workdir, steps = "gs://b/runs/a", lambda: [line["step"] for line in stored.metrics(workdir)]
    with fake_bucket.installed(tmp_path / "bucket") as bucket:
        writer = make(workdir)
        writer.write(1, {"loss": 1.0})
        assert steps() == []
        writer.push()
        writer.write(2, {"loss": 2.0})
        assert steps() == [1]

        def refuse(operation, name):
            raise RuntimeError("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(bucket, "fail", staticmethod(refuse))
            patch.setattr(metrics_writer, "COPIED_EVERY", -1)
            writer.write(3, {"loss": 3.0})
            writer.write(4, {"loss": 4.0})
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
        assert len(said) == 1 and "cannot write the metrics to the bucket" in said[0] and "no answer" in said[0]
        assert steps() == [1]
        with monkeypatch.context() as patch:
            patch.setattr(metrics_writer, "COPIED_EVERY", -1)
            writer.write(5, {"loss": 5.0})
        assert steps() == [1, 2, 3, 4, 5]
        writer.write(6, {"loss": 6.0})
        writer.close()
        time.sleep(1.1)  # a file of events is called by the second in which it was begun
        writer = make(workdir, start=5)
        writer.write(6, {"loss": 60.0})
        writer.close()
        assert steps() == [1, 2, 3, 4, 5, 6] and stored.metrics(workdir)[-1]["loss"] == 60.0
        assert len(storage.names(f"{workdir}/tensorboard")) == 2
