"""The one meaning of an audio file: one channel at the rate that is asked for."""

import io

import numpy as np


def read_audio(audio, *, sampling_rate: int, num_samples: int | None = None) -> np.ndarray:
    """The beginning of a sound, float32 `[samples]`, its channels averaged; read by libsndfile, resampled by soxr.

    Args:
        audio: a path, the bytes of an audio file, or `{"bytes": …, "path": …}`.
        sampling_rate: samples a second.
        num_samples: of these, the most that are read; all by default.
    """
    import soundfile
    import soxr

    if isinstance(audio, dict):
        audio = audio["path"] if audio["bytes"] is None else audio["bytes"]
    if audio is None:
        raise ValueError("there is no audio")
    with soundfile.SoundFile(io.BytesIO(audio) if isinstance(audio, bytes) else audio) as file:
        frames = -1 if num_samples is None else -(-num_samples * file.samplerate // sampling_rate)
        samples = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
        samples = soxr.resample(samples, file.samplerate, sampling_rate)[:num_samples]
    if not len(samples):
        raise ValueError("the sound is empty")
    return samples
