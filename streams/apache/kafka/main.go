// Command kafka runs Apache Kafka on this machine for development, until Ctrl-C: make kafka.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"hearthline/streams/apache"
)

func main() {
	c := apache.New()
	flag.IntVar(&c.Brokers, "brokers", 1, "how many brokers: 3 go on without any one of them")
	flag.StringVar(&c.Dir, "dir", "data/kafka", "directory of the data, kept; \"\" is one that is removed at the end")
	port := flag.Int("port", 9092, "port of the first broker on 127.0.0.1; the others follow")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "kafka: %q is not a flag\n", flag.Arg(0))
		os.Exit(2)
	}
	for i := range c.Brokers {
		c.Addrs = append(c.Addrs, net.JoinHostPort("127.0.0.1", strconv.Itoa(*port+i)))
	}
	c.Ready = func(addrs []string) {
		fmt.Printf("Apache Kafka serves on %s; each broker's log is broker-N/kafka.log in %s.\n"+
			"In another terminal:\n  HEARTHLINE_KAFKA=%s make run\nCtrl-C stops it.\n",
			strings.Join(addrs, ", "), c.Dir, strings.Join(addrs, ","))
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	fmt.Println("starting Apache Kafka (the first time, its jars are fetched) …")
	if err := c.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
