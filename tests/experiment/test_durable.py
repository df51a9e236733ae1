"""Writers of one file at the same time: every reader sees one whole content, and nobody fails."""

import threading

from madiff.experiment import durable


def test_many_writers_of_one_file_never_show_a_part_or_hinder_each_other(tmp_path):
    contents = [bytes([65 + number]) * (1000 + 7000 * number) for number in range(4)]
    path, errors, done = tmp_path / "summary.json", [], threading.Event()
    durable.replace(path, contents[0])

    def write(content):
        try:
            for _ in range(20):
                durable.replace(path, content)
        except OSError as error:
            errors.append(error)

    def read():
        while not done.is_set():
            if (seen := path.read_bytes()) not in contents:
                errors.append(len(seen))

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader = threading.Thread(target=read)
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    assert not errors and path.read_bytes() in contents and [p.name for p in tmp_path.iterdir()] == [path.name]
