"""Generates synthetic recordings in UCI HAR's layout, for machines without the data and for tests of the real reader.

The model is a phone at the waist, x upwards as in UCI HAR. With step frequency f and phase p = 2 pi f t, the body's acceleration is
a sum of harmonics of the stride (two steps, p / 2): up and forwards have the period of a step, sideways the period of a stride.

    walking      f about 1.9 Hz             downstairs   f 10 % higher, hard impacts: strong 2nd and 3rd harmonic, limping steps
    upstairs     f 15 % lower, leans forward, turns more at the hip        standing   gravity along x, slow sway
    sitting      gravity tilted back, nearly still                         laying     gravity across x, still

Subjects differ in step frequency, strength, posture and in the orientation of the phone in the belt (a rotation of the sensor's
frame). All values are functions of (seed, subject, activity). The data is not as difficult as real data: accuracies on it are
meaningless.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.signals.har_reader import FOLDER, LENGTH, SIGNALS

ACTIVITIES = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
OFFICIAL_TEST_SUBJECTS = (2, 4, 9, 10, 12, 13, 18, 20, 24)
RATE = 50.0  # Hz
STEP = LENGTH // 2  # windows overlap by one half
NOISE_ACC, NOISE_GYRO = 0.015, 0.02  # g, rad/s

Array = np.ndarray[Any, Any]


class _Gait(NamedTuple):
    """Parameters of a gait."""

    frequency: float  # factor of the subject's step frequency
    up: tuple[float, float, float]  # g, amplitudes of the harmonics of a step
    forwards: tuple[float, float, float]  # g, likewise
    sideways: float  # g, at half the step frequency
    limp: float  # relative modulation of the amplitude: every other step is weaker
    turn: tuple[float, float, float]  # rad/s about x, y, z
    lean: float  # rad, forwards


class _Person(NamedTuple):
    """Parameters that are the same in all recordings of one subject."""

    frequency: float  # Hz, steps
    strength: float
    frame: Array  # (3, 3) rotation of the phone
    tilt: float  # rad, backward tilt when sitting
    side: float  # -1 or 1: lying on the back or on the front
    drift: Array  # (3,) rad/s, offset of the gyroscope


GAITS = {
    "WALKING": _Gait(1.0, (0.28, 0.12, 0.04), (0.16, 0.06, 0.02), 0.10, 0.05, (0.35, 0.25, 0.20), 0.05),
    "WALKING_UPSTAIRS": _Gait(0.85, (0.22, 0.05, 0.02), (0.20, 0.08, 0.03), 0.14, 0.10, (0.65, 0.40, 0.35), 0.22),
    "WALKING_DOWNSTAIRS": _Gait(1.1, (0.40, 0.28, 0.18), (0.18, 0.12, 0.08), 0.12, 0.30, (0.45, 0.55, 0.30), 0.0),
}


def write_generated(
    root: Path,
    *,
    seed: int = 0,
    subjects: Sequence[int] = range(1, 31),
    test_subjects: Collection[int] = OFFICIAL_TEST_SUBJECTS,
    windows: int = 8,
) -> Path:
    """Write a data set, unless the same one already exists.

    Args:
        root: Folder in which `UCI HAR Dataset` is created; an existing generated data set with other settings is replaced, other
            data is not touched.
        seed: Seed of all random numbers.
        subjects: Numbers of the subjects.
        test_subjects: Subjects of the test part.
        windows: Number of windows of each subject and activity.

    Returns:
        The folder that was written.

    Raises:
        ValueError: The training part or the test part would have no subject.
        FileExistsError: There is a data set that this function did not write.
    """
    folder, marker = root / FOLDER, "generated.txt"
    tests = sorted(set(subjects) & set(test_subjects))
    if not 0 < len(tests) < len(subjects):
        raise ValueError(f"subjects {list(subjects)} with test_subjects {tests}: each part needs at least one subject")
    text = f"made-up recordings, version 1: seed {seed}, subjects {list(subjects)}, of them test {tests}, windows {windows}\n"
    if folder.exists():
        if not (folder / marker).is_file():
            raise FileExistsError(f"{folder.absolute()} holds data that was not generated; it is not overwritten")
        if (folder / marker).read_text(encoding="utf-8") == text:
            return folder
    unfinished = root / f"{FOLDER}.unfinished-{os.getpid()}"  # renamed once it is complete
    for part in ("train", "test"):
        chosen = [subject for subject in subjects if (subject in tests) == (part == "test")]
        signals, activity, subject = generate(chosen, windows, seed)
        inner = unfinished / part / "Inertial Signals"
        inner.mkdir(parents=True)
        for place, name in enumerate(SIGNALS):
            np.savetxt(inner / f"{name}_{part}.txt", signals[:, place], fmt=" %15.7e", delimiter="")
        np.savetxt(unfinished / part / f"y_{part}.txt", activity, fmt="%d")
        np.savetxt(unfinished / part / f"subject_{part}.txt", subject, fmt="%d")
    labels = "".join(f"{number} {name}\n" for number, name in enumerate(ACTIVITIES, start=1))
    (unfinished / "activity_labels.txt").write_text(labels, encoding="utf-8")
    (unfinished / marker).write_text(text, encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.replace(folder)
    return folder


def generate(subjects: Sequence[int], windows: int, seed: int) -> tuple[Array, Array, Array]:
    """Generate the windows of some subjects, ordered by subject and then by activity.

    Args:
        subjects: Numbers of the subjects.
        windows: Number of windows of each subject and activity, cut from one recording so that neighbours overlap by one half.
        seed: Seed of all random numbers.

    Returns:
        Signals (N, 9, 128) float64 in the official order, activity (N,) from 1, and subject (N,).
    """
    recordings = [
        recording(subject, name, LENGTH + STEP * (windows - 1), seed) for subject in subjects for name in ACTIVITIES
    ]
    cut = [whole[:, STEP * i : STEP * i + LENGTH] for whole in recordings for i in range(windows)]
    activity = np.tile(np.repeat(np.arange(1, len(ACTIVITIES) + 1), windows), len(subjects))
    return np.stack(cut), activity, np.repeat(np.asarray(subjects), windows * len(ACTIVITIES))


def recording(subject: int, activity: str, samples: int, seed: int) -> Array:
    """Generate one recording.

    Args:
        subject: Number of the subject.
        activity: One of ACTIVITIES.
        samples: Length of the recording in samples.
        seed: Seed of all random numbers.

    Returns:
        (9, samples) float64: body acceleration, angular velocity, then total acceleration, each x, y, z.
    """
    person = _person(subject, seed)
    random = np.random.default_rng([seed, subject, ACTIVITIES.index(activity) + 1])
    gravity = _gravity(activity, person, random)
    if activity in GAITS:
        body, gyro = _walk(GAITS[activity], person, samples, random)
    else:
        body, gyro = _rest(samples, 0.008 if activity == "STANDING" else 0.003, random)
    body = person.frame @ body + random.normal(0, NOISE_ACC, (3, samples))
    gyro = person.frame @ gyro + person.drift[:, None] + random.normal(0, NOISE_GYRO, (3, samples))
    return np.concatenate([body, gyro, body + (person.frame @ gravity)[:, None]])


def _person(subject: int, seed: int) -> _Person:
    random = np.random.default_rng([seed, subject, 0])
    angles = random.normal(0, np.deg2rad(7), 3)
    return _Person(
        frequency=float(random.normal(1.9, 0.12)),
        strength=float(random.uniform(0.8, 1.25)),
        frame=_rotation(0, angles[0]) @ _rotation(1, angles[1]) @ _rotation(2, angles[2]),
        tilt=float(random.normal(np.deg2rad(25), np.deg2rad(9))),
        side=float(random.choice([-1.0, 1.0])),
        drift=random.normal(0, 0.02, 3),
    )


def _gravity(activity: str, person: _Person, random: np.random.Generator) -> Array:
    """Direction of the reaction to gravity, (3,) in g; along x for a subject who stands upright."""
    wobble = random.normal(0, np.deg2rad(3), 2)
    back = {"SITTING": -person.tilt, "LAYING": person.side * np.deg2rad(88)}.get(activity, 0.0)
    lean = GAITS[activity].lean if activity in GAITS else back
    result: Array = _rotation(1, lean + wobble[0]) @ _rotation(2, wobble[1]) @ np.array([1.0, 0.0, 0.0])
    return result


def _walk(gait: _Gait, person: _Person, samples: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Body acceleration in g and angular velocity in rad/s of walking, each (3, samples), in the subject's frame."""
    knots = np.arange(0, samples + 64, 64)  # nodes of a random variation of the step frequency, by a few per cent
    wander = 1 + np.interp(np.arange(samples), knots, random.normal(0, 0.03, len(knots)))
    turned = 2 * np.pi * np.cumsum(person.frequency * gait.frequency * wander) / RATE
    phase = turned + random.uniform(0, 4 * np.pi)
    steps = 1 + gait.limp * np.cos(phase / 2)
    up = sum(a * np.cos((i + 1) * phase) for i, a in enumerate(gait.up))
    forwards = sum(a * np.sin((i + 1) * phase + 0.5) for i, a in enumerate(gait.forwards))
    sideways = gait.sideways * np.cos(phase / 2 + 0.3)
    turns = [
        a * np.sin(phase * rate + shift)
        for a, rate, shift in zip(gait.turn, (0.5, 1.0, 0.5), (0.2, 1.0, 2.0), strict=True)
    ]
    return person.strength * np.stack([up * steps, sideways, forwards * steps]), person.strength * np.stack(turns)


def _rest(samples: int, sway: float, random: np.random.Generator) -> tuple[Array, Array]:
    """Body acceleration and angular velocity at rest, as in `_walk`; `sway` is the amplitude in g."""
    time = np.arange(samples) / RATE
    rates, phases = random.uniform(0.2, 0.5, (3, 1)), random.uniform(0, 2 * np.pi, (3, 1))
    waves = np.sin(2 * np.pi * rates * time + phases)
    return sway * waves, 2 * sway * waves[::-1]


def _rotation(axis: int, angle: float) -> Array:
    """Rotation matrix (3, 3) about an axis by `angle` radians."""
    first, second = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix
