import threading

from threadpoolctl import threadpool_info

from dlpr.core.blas import blas_threads


def test_whichever_thread_asks_sets_the_number_of_the_process() -> None:
    seen = []

    def look(n_threads: int) -> None:
        with blas_threads(n_threads):
            found = {own["num_threads"] for own in threadpool_info() if own["user_api"] == "blas"}
        seen.append((n_threads, found))

    look(1)
    for n_threads in (2, 3):
        other = threading.Thread(target=look, args=(n_threads,))
        other.start()
        other.join()
    assert seen == [(n, {n}) for n in (1, 2, 3)]
