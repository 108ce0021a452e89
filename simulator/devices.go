package simulator

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Device is one line of the device registry.
type Device struct {
	Home, Device string // names; a device's is unique within its home
	Room         string // where it hangs
	Kind         string // climate, air, motion, power, contact, light, label
	Model        string
	Zone         string // of the home: indoor, entrance, utility
}

// template is a device that a simulated home can have.
type template struct {
	name, room, kind, model, zone string
	metrics                       []metric
}

// metric is what a device measures. A text metric has states instead of numbers.
type metric struct {
	name, unit string
	decimals   int
	text       bool
	odd        bool    // can spike, stick and drift
	jump       float64 // the size of a spike
	low, high  float64 // what the sensor can say at all
}

var (
	temperature = metric{name: "temperature", unit: "°C", decimals: 2, odd: true, jump: 12, low: -20, high: 45}
	humidity    = metric{name: "humidity", unit: "%", decimals: 1, odd: true, jump: 35, low: 5, high: 99}
	co2         = metric{name: "co2", unit: "ppm", odd: true, jump: 1500, low: 380, high: 5000}
	light       = metric{name: "light", unit: "lux", decimals: 1, odd: true, jump: 6000, low: 0, high: 20000}
	motion      = metric{name: "motion", high: 1}
	power       = metric{name: "power", unit: "W", decimals: 1, odd: true, jump: 7000, low: 0, high: 11000}
	voltage     = metric{name: "voltage", unit: "V", decimals: 1, low: 200, high: 255}
	current     = metric{name: "current", unit: "A", decimals: 3, low: 0, high: 60}
	contact     = metric{name: "contact", text: true}
	battery     = metric{name: "battery", unit: "%", low: 0, high: 100}
)

// templates: every home has the first four, and up to four more in this order.
var templates = []template{
	{"climate-living", "living room", "climate", "HL-TH2", "indoor", []metric{temperature, humidity, battery}},
	{"air-living", "living room", "air", "HL-AQ1", "indoor", []metric{co2, temperature, humidity}},
	{"motion-hall", "hall", "motion", "HL-PIR3", "entrance", []metric{motion, light, battery}},
	{"meter", "cellar", "power", "HL-EM1", "utility", []metric{power, voltage, current}},
	{"door-front", "hall", "contact", "HL-DW1", "entrance", []metric{contact, battery}},
	{"light-kitchen", "kitchen", "light", "HL-LX1", "indoor", []metric{light, battery}},
	{"climate-bath", "bathroom", "climate", "HL-TH2", "indoor", []metric{temperature, humidity, battery}},
	{"climate-bedroom", "bedroom", "climate", "HL-TH2", "indoor", []metric{temperature, humidity, battery}},
}

// HomeName is the name of the simulated home number i, counted from 1.
func HomeName(i int) string { return fmt.Sprintf("home-%04d", i) }

// HomeNames lists the homes of these settings: the simulated ones, then the recorded ones. Each needs credentials at
// the gateway.
func (s *Simulator) HomeNames() []string {
	out := make([]string, 0, s.Homes+len(rooms))
	for i := 1; i <= s.Homes; i++ {
		out = append(out, HomeName(i))
	}
	if s.Recorded {
		for _, r := range rooms {
			out = append(out, r.home)
		}
	}
	return out
}

// Registry lists the devices of all homes, in the order of [Simulator.HomeNames].
func (s *Simulator) Registry() []Device {
	var out []Device
	for i := 1; i <= s.Homes; i++ {
		out = append(out, newHome(s.Seed, i).devices()...)
	}
	if s.Recorded {
		for _, r := range rooms {
			out = append(out, r.devices...)
		}
	}
	return out
}

// WriteRegistry puts the registry as CSV (home,device,room,kind,model,zone; with a header line) at path, atomically: a
// reader sees the old file or the new one.
func (s *Simulator) WriteRegistry(path string) error {
	return writeAtomically(path, func(w io.Writer) error {
		c := csv.NewWriter(w)
		c.Write([]string{"home", "device", "room", "kind", "model", "zone"}) // Flush and Error tell of failures
		for _, d := range s.Registry() {
			c.Write([]string{d.Home, d.Device, d.Room, d.Kind, d.Model, d.Zone})
		}
		c.Flush()
		return c.Error()
	})
}

// writeAtomically puts a file so that it is whole and durable, or not there.
func writeAtomically(path string, write func(io.Writer) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = errors.Join(write(f), f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	d, err := os.Open(dir) // #nosec G304 -- the data folder: a file's name is durable when its folder is
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
