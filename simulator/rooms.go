package simulator

import _ "embed" // for the recordings

// room is a home that plays what real sensors recorded. recordings/README.md says where the readings are from.
type room struct {
	home     string
	devices  []Device
	readings [][]roomReading // by device
	read     func() (*recording, error)
}

// roomReading says which column of a recording is which metric.
type roomReading struct {
	metric, unit string
	column       int
}

//go:embed recordings/room_occupancy.csv.gz
var roomOccupancy []byte

//go:embed recordings/occupancy.csv.gz
var occupancy []byte

// rooms are those that there are.
var rooms = []*room{
	laboratory("recorded-room", reader("room_occupancy", &roomOccupancy, 2, "2006/01/02 15:04:05")),
	office("recorded-office", reader("occupancy", &occupancy, 1, "2006-01-02 15:04:05")),
}

// add adds a device.
func (r *room) add(name, room, kind, model string, readings ...roomReading) {
	r.devices = append(r.devices, Device{Home: r.home, Device: name, Room: room, Kind: kind, Model: model, Zone: "indoor"})
	r.readings = append(r.readings, readings)
}

func laboratory(home string, read func() (*recording, error)) *room {
	r := &room{home: home, read: read}
	for i, n := range []string{"S1", "S2", "S3", "S4"} {
		r.add(n, "laboratory", "climate", "temperature-light-sound node",
			roomReading{"temperature", "°C", i}, roomReading{"light", "lux", 4 + i}, roomReading{"sound", "V", 8 + i})
	}
	r.add("S5", "laboratory", "air", "CO2 node", roomReading{"co2", "ppm", 12})
	r.add("S6", "laboratory", "motion", "PIR node", roomReading{"motion", "", 13})
	r.add("S7", "laboratory", "motion", "PIR node", roomReading{"motion", "", 14})
	r.add("room", "laboratory", "label", "counted by hand", roomReading{"occupancy", "people", 15})
	return r
}

func office(home string, read func() (*recording, error)) *room {
	r := &room{home: home, read: read}
	r.add("climate", "office", "climate", "temperature-humidity-light node",
		roomReading{"temperature", "°C", 0}, roomReading{"humidity", "%", 1}, roomReading{"light", "lux", 2})
	r.add("air", "office", "air", "CO2 node", roomReading{"co2", "ppm", 3})
	r.add("room", "office", "label", "seen in pictures", roomReading{"occupied", "", 4})
	return r
}
