// Runs h2spec, all of its cases and the strict ones, against an address in plain text: h2spec HOST PORT.
// It prints each case, and ends with 1 when one does not hold.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: h2spec HOST PORT")
		os.Exit(2)
	}
	port, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "h2spec: the port:", err)
		os.Exit(2)
	}
	good, err := h2spec.Run(&config.Config{
		Host: os.Args[1], Port: port, Path: "/", Timeout: 20 * time.Second, MaxHeaderLen: 4000, Strict: true,
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "h2spec:", err)
		os.Exit(2)
	}
	if !good {
		os.Exit(1)
	}
}
