"""Tests of the comparison's own parts: `python3 benches/compare/tests.py`."""

import json
import pathlib
import socket
import sys
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fio
import jobs
import plots
import servers
from processes import Failure, Process
from results import Results, number, ratio, table_of


def iops_row(row_id, **more):
    return jobs.Row(row_id, "small", "reading", "warm", "IOPS", jobs.iops, **more)


def results(*rows):
    return Results(list(rows), [servers.NbdkitMemory, servers.CairnMinio], servers.NbdkitMemory.key)


class Tables(unittest.TestCase):
    def test_a_cell_has_the_median_and_its_ratio_to_the_reference(self):
        found = results(iops_row("a"))
        for server, values in [(servers.NbdkitMemory, [100, 400, 200]), (servers.CairnMinio, [300, 10, 50])]:
            for round_number, value in enumerate(values):
                found.record(server, round_number, "a", {"iops": value})
        found.check(3)
        self.assertEqual(found.cell(found.rows[0], servers.CairnMinio)[:3], ([300, 10, 50], 50, 0.25))
        self.assertIn("| reading | warm | IOPS | 200 (1.00) | 50.0 (0.25) |", found.table())
        self.assertEqual(found.json()["rows"][0]["cells"]["cairn-minio"]["values"], [300, 10, 50])

    def test_a_missing_value_is_a_failure(self):
        found = results(iops_row("a"), iops_row("b"))
        for server in found.servers:
            for round_number in range(2):
                found.record(server, round_number, "a", {"iops": 1})
                if server is not servers.CairnMinio or round_number == 0:
                    found.record(server, round_number, "b", {"iops": 1})
        with self.assertRaisesRegex(Failure, "Cairn, MinIO: reading .warm.: 1 of 2 values") as caught:
            found.check(2)
        self.assertEqual(len(str(caught.exception).splitlines()), 2)

    def test_what_a_server_cannot_have_is_not_missing(self):
        row = iops_row("a", has_ratio=False, needs="store")
        found = results(row)
        found.record(servers.CairnMinio, 0, "a", {"iops": 7})
        found.check(1)
        self.assertIn("| – | 7.00 |", found.table())

    def test_the_readme_has_the_tables_of_the_last_runs_and_the_plots(self):
        root = pathlib.Path(__file__).resolve().parents[2]
        readme = (root / "README.md").read_text(encoding="utf-8")
        for name in ["compare", "pgbench"]:
            document = json.loads((root / f"docs/{name}.json").read_text(encoding="utf-8"))
            self.assertIn(table_of(document), readme)
            for word in [document["commit"], document["command"], document["machine"]["cpu"], f"(docs/{name}.json)"]:
                self.assertIn(word, readme)
        for name in plots.PLOTS:
            self.assertIn(f"(docs/figures/{name}.svg)", readme)
            self.assertTrue((root / f"docs/figures/{name}.svg").is_file())

    def test_every_row_is_of_a_stage_and_no_name_is_used_twice(self):
        rows = jobs.rows(jobs.FULL)
        self.assertEqual(len({row.id for row in rows}), len(rows))
        self.assertEqual(len({(row.work, row.state) for row in rows}), len(rows))
        self.assertEqual({stage for row in rows for stage in row.stage.split()}, set(jobs.STAGES))

    def test_a_server_takes_part_in_what_it_has(self):
        self.assertEqual([stage for stage in jobs.STAGES if not jobs.takes_part(stage, servers.QemuNbd)], ["raw", "crowd"])
        self.assertTrue(all(jobs.takes_part(stage, servers.CairnMinio) for stage in jobs.STAGES))

    def test_numbers_keep_their_size(self):
        self.assertEqual([number(n) for n in [123456.7, 99.94, 9.999, 0.5]], ["123,457", "99.9", "10.00", "0.50"])
        self.assertEqual([ratio(n) for n in [1.5, 0.25, 0.0123]], ["1.50", "0.25", "0.012"])


class Plots(unittest.TestCase):
    def test_a_plot_is_xml_with_a_bar_for_each_server(self):
        row = iops_row("a")._replace(state="<cold>")
        found = results(row)
        for server in found.servers:
            found.record(server, 0, "a", {"iops": 5})
        root = xml.etree.ElementTree.fromstring(plots.plot("compare-random", found))
        bars = root.findall("{http://www.w3.org/2000/svg}rect")
        self.assertEqual(len(bars), 1 + len(found.servers))
        self.assertIsNone(plots.plot("compare-cost", found))


class Fio(unittest.TestCase):
    SIDE = '{"total_ios": 8, "io_bytes": 32768, "runtime": 500, "iops": 16.0, "clat_ns": {"percentile": %s}}'
    TIMES = '{"50.000000": 2000000, "99.000000": 3000000}'
    TEXT = ('fio: connected to NBD server\n{\n "jobs": [{"error": 0, "read": ' + SIDE % TIMES + ', "write": '
            + SIDE % "{}" + ', "sync": {"total_ios": 2, "lat_ns": {"percentile": ' + TIMES + "}}}]}\n")

    def test_figures_are_those_of_the_side_that_works(self):
        [found] = fio.figures(self.TEXT, reads=True)
        self.assertEqual((found["iops"], found["seconds"], found["bytes"]), (16.0, 0.5, 32768))
        self.assertEqual(found["latency_ms"], {"p50": 2.0, "p99": 3.0})
        self.assertEqual(found["flush_ms"]["p50"], 2.0)

    def test_several_disks_have_their_figures_each(self):
        text = self.TEXT.replace("[", "[" + self.TEXT[self.TEXT.index("[") + 1:self.TEXT.index("]")] + ", ", 1)
        self.assertEqual([found["iops"] for found in fio.figures(text, reads=True, disks=2)], [16.0, 16.0])
        with self.assertRaises(Failure):
            fio.figures(text, reads=True, disks=3)
        command = fio.random_read(1 << 20, 1, connections=4).command(["nbd://a/x", "nbd://a/y"])
        self.assertLess(command.index("--numjobs=4"), command.index("--name=compare"), "it holds for both")
        self.assertEqual(command[-6:], ["--name=compare", "--new_group", "--uri=nbd://a/x",
                                        "--name=compare", "--new_group", "--uri=nbd://a/y"])

    def test_a_job_that_failed_or_did_nothing_is_a_failure(self):
        for text in ["", self.TEXT.replace('"error": 0', '"error": 5'), self.TEXT.replace("8", "0", 1)]:
            with self.assertRaises(Failure):
                fio.figures(text, reads=True)


class Delay(unittest.TestCase):
    MILLISECONDS = 40

    def test_an_answer_takes_the_latency_longer_and_every_byte_arrives_in_order(self):
        server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        script = pathlib.Path(__file__).with_name("delay.py")
        argv = ["/usr/bin/python3", script, server.getsockname()[1], self.MILLISECONDS]
        with tempfile.TemporaryDirectory() as work, server:
            proxy = Process("the delay", argv, pathlib.Path(work) / "log", "listening on ")
            try:
                with socket.create_connection(("127.0.0.1", int(proxy.said().split()[-1]))) as client:
                    begun = time.monotonic()
                    client.sendall(b"x")
                    self.assertEqual(client.recv(1), b"x")
                    self.assertGreaterEqual(time.monotonic() - begun, self.MILLISECONDS / 1000)
                    # More than may be under way, so that reading pauses and goes on.
                    sent = bytes(range(256)) * (40 << 12)
                    sender = threading.Thread(target=client.sendall, args=(sent,), daemon=True)
                    sender.start()
                    self.assertTrue(received(client, len(sent)) == sent, "the bytes differ")
                    sender.join()
            finally:
                proxy.kill()


def echo(server):
    client, _ = server.accept()
    with client:
        while data := client.recv(1 << 20):
            client.sendall(data)


def received(client, length):
    parts, missing = [], length
    while missing:
        parts.append(client.recv(min(missing, 1 << 20)))
        assert parts[-1], "the stream ended early"
        missing -= len(parts[-1])
    return b"".join(parts)


if __name__ == "__main__":
    unittest.main()
