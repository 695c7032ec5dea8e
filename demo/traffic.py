"""Calls in the background while something else happens."""

import threading
from collections import Counter
from types import TracebackType
from typing import Self

import requests


class Traffic:
    """``callers`` threads that GET ``url`` again and again while the context lasts."""

    def __init__(self, url: str, callers: int = 4) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(callers)]
        self._lock = threading.Lock()
        self.answers: Counter[int | str] = Counter()
        """The number of answers by status, or by the error's name if there was no answer."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not self._stopping.is_set():
                outcome: int | str
                try:
                    outcome = session.get(self._url, timeout=20).status_code
                except requests.RequestException as error:
                    outcome = type(error).__name__
                with self._lock:
                    self.answers[outcome] += 1
