// Asks the functions of docs/how-to/other-libraries.md, which the test puts beside this file as documented.go. It prints the
// claims of what they believe, or fails.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	ask := map[string]func(string) (map[string]any, error){"claims": claimsOf, "document": documentOf}[os.Args[1]]
	claims, err := ask(os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(claims)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
