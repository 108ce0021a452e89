package client_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"

	"hearthline/client"
)

// A hub sends what its devices say, and does what is asked of them.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c := client.New("mqtts://gateway.example:8883")
	c.User, c.Password = "hub-17", os.Getenv("HUB_PASSWORD")
	c.Home, c.Dir = "home-17", "/var/lib/hub"
	c.Command = func(ctx context.Context, cmd client.Command) error {
		var to struct {
			On bool `json:"on"`
		}
		if cmd.Name != "switch" {
			return fmt.Errorf("no command %q", cmd.Name)
		}
		if err := json.Unmarshal(cmd.Arguments, &to); err != nil {
			return err
		}
		return setLamp(ctx, cmd.Device, to.On)
	}
	go func() {
		for watts := range meter(ctx) {
			err := c.Send(ctx, client.Reading{Device: "lamp", Metric: "power", Value: watts, Unit: "W"})
			if errors.Is(err, client.ErrFull) {
				log.Print("the cloud has been away for long: this reading is dropped")
			}
		}
	}()
	if err := c.Run(ctx); err != nil {
		log.Fatal(err) // a setting is wrong
	}
}

// A cloud hands in what it has gathered from many homes, over HTTP, and waits until it is durable.
func Example_cloud() {
	ctx := context.Background()
	c := client.New("https://gateway.example:8443")
	c.Token = func() (string, error) { return os.Getenv("CLOUD_TOKEN"), nil } // a JWT, asked for again for each request
	go c.Run(ctx)
	err := c.Send(ctx,
		client.Reading{Home: "home-17", Device: "lamp", Metric: "power", Value: 7.5, Unit: "W"},
		client.Reading{Home: "home-18", Device: "door", Metric: "state", Text: "open"},
	)
	if err == nil {
		err = c.Flush(ctx)
	}
	if err != nil {
		log.Print(err)
	}
}

// A device with a certificate of its own needs no password.
func ExampleClient_mTLS() {
	certificate, err := tls.LoadX509KeyPair("/etc/hub/device.pem", "/etc/hub/device.key")
	if err != nil {
		log.Fatal(err)
	}
	c := client.New("wss://gateway.example:8443/mqtt") // also where only the web's port is open
	c.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	c.ClientID, c.Home = "hub-17", "home-17"
	if err := c.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func setLamp(context.Context, string, bool) error { return nil }

func meter(context.Context) <-chan float64 { return nil }
