// Runs a network's plugins by libcni, the library of container runtimes, as a runtime would.
//
//	libcni-driver ADD|CHECK|DEL CONFLISTS NETWORK CONTAINER NETNS
//
// CONFLISTS is a directory of configurations, NETWORK the name of one of them. Plugins are looked for in CNI_PATH.
// CAP_ARGS is JSON for the plugins that declare the capability, in each command. What the library remembers of a
// container is in CNI_CACHE. ADD prints the result. An error of a plugin is printed as the object that it is.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var refusal *types.Error
		if errors.As(err, &refusal) {
			// It says why by its numbers too.
			_ = refusal.Print()
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("five arguments are needed: command, directory, network, container, namespace")
	}
	list, err := libcni.LoadConfList(args[1], args[2])
	if err != nil {
		return err
	}
	container := &libcni.RuntimeConf{ContainerID: args[3], NetNS: args[4], IfName: "eth0"}
	if text := os.Getenv("CAP_ARGS"); text != "" {
		if err := json.Unmarshal([]byte(text), &container.CapabilityArgs); err != nil {
			return fmt.Errorf("CAP_ARGS: %w", err)
		}
	}
	plugins := filepath.SplitList(os.Getenv("CNI_PATH"))
	runtime := libcni.NewCNIConfigWithCacheDir(plugins, os.Getenv("CNI_CACHE"), nil)
	ctx := context.Background()
	switch args[0] {
	case "ADD":
		result, err := runtime.AddNetworkList(ctx, list, container)
		if err != nil {
			return err
		}
		return result.Print()
	case "CHECK":
		return runtime.CheckNetworkList(ctx, list, container)
	case "DEL":
		return runtime.DelNetworkList(ctx, list, container)
	default:
		return fmt.Errorf("%q is no command", args[0])
	}
}
