"""benchmarks/nycflights13.py uses nothing that is known only after a flight has left, on flights that are made up."""

import importlib.util
from pathlib import Path

from nasrec_torchrec.datasets.prepared import open_split

FILE = Path(__file__).parents[2] / "benchmarks" / "nycflights13.py"
SPEC = importlib.util.spec_from_file_location("nycflights13", FILE)
assert SPEC is not None and SPEC.loader is not None
nycflights13 = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(nycflights13)

FLIGHTS = """\
year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,\
air_time,distance,hour,minute,time_hour
2013,12,1,900,900,0,1100,1100,0,UA,1,N1,EWR,IAH,100,1400,9,0,2013-12-01T14:00:00Z
2013,1,1,517,515,2,830,819,16,UA,1,N1,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z
2013,1,1,500,500,0,800,815,15,AA,2,N2,LGA,MIA,200,1100,5,0,2013-01-01T10:00:00Z
2013,11,4,NA,2359,NA,NA,30,NA,AA,2,NA,LGA,MIA,NA,1100,23,59,2013-11-05T04:00:00Z
2013,10,31,700,700,0,1000,900,NA,AA,2,N2,LGA,MIA,NA,1100,7,0,2013-10-31T11:00:00Z
"""
WEATHER = """\
origin,year,month,day,hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib,time_hour
EWR,2013,1,1,3,30.5,20,60,270,10,NA,0,1012,10,2013-01-01T08:00:00Z
EWR,2013,1,1,4,31.5,20,60,270,10,NA,0,1012,10,2013-01-01T09:00:00Z
EWR,2013,1,1,5,32.5,20,60,270,10,NA,0,NA,10,2013-01-01T10:00:00Z
LGA,2013,1,1,4,40,20,60,270,10,NA,0,1012,10,2013-01-01T09:00:00Z
LGA,2013,11,4,21,50,20,60,270,10,NA,0.5,NA,10,2013-11-05T02:00:00Z
"""


def test_flights_become_clicks_split_by_month(tmp_path: Path):
    (tmp_path / "flights.csv").write_text(FLIGHTS)
    (tmp_path / "weather.csv").write_text(WEATHER)
    tables = (nycflights13.read(tmp_path / f"{name}.csv") for name in ("flights", "weather"))
    rows = nycflights13.planned(*tables).to_pydict()
    # Late by more than 15 minutes, cancelled or diverted.
    assert rows["late"] == [0, 1, 1, 1, 0]
    # Of the hour that begins two hours before that of the planned departure; a later record is not used.
    assert rows["temp"] == [None, 30.5, None, 50.0, None]
    assert rows["pressure"] == [None, 1012.0, None, None, None]
    assert rows["departure_hour"] == ["5", "5", "7", "23", "9"] and rows["arrival_hour"] == ["8", "8", "9", "0", "11"]
    assert rows["departure_minutes"] == [300, 315, 420, 1439, 540]
    assert rows["weekday"] == ["1", "1", "3", "0", "6"]  # a Tuesday, a Thursday, a Monday, a Sunday
    nycflights13.main(tmp_path / "data", tmp_path)
    splits = {name: open_split(tmp_path / "data", name).load() for name in ("train", "validation", "test")}
    assert {name: data.labels.tolist() for name, data in splits.items()} == {
        "train": [0, 1, 1],
        "validation": [1],
        "test": [0],
    }
    known_before = {"carrier", "flight", "origin", "dest", "departure_hour", "arrival_hour", "weekday"}
    assert set(splits["train"].sparse.keys()) == known_before
