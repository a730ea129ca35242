package console_test

import (
	"fmt"
	"net"

	"github.com/healz/worker/internal/console"
)

func ExampleAccess_CheckAddress() {
	everywhere := &net.TCPAddr{IP: net.IPv4zero, Port: 8080}
	here := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080}
	open, byToken := console.Access{}, console.Access{Token: "sixteen or more characters"}
	fmt.Println(open.CheckAddress(here), byToken.CheckAddress(everywhere))
	fmt.Println(open.CheckAddress(everywhere))
	// Output:
	// <nil> <nil>
	// without a token, the console is served only on loopback addresses
}
