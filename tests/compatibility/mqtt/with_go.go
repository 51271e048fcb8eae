// A publisher and a subscriber with paho.mqtt.golang. The subscriber has the options of Telegraf's `inputs.mqtt_consumer`
// with `persistent_session = true`.
//
//	with_go ADDRESS QOS once|always
//
// The subscriber subscribes only `once`, as Telegraf does if the broker has its session, or `always` on each connection.
// The publisher publishes numbers in windows until a line comes on standard input. Then it publishes `end`. The program ends
// when the subscriber has received that. It prints one line for each event:
//
//	connected CLIENT            and `lost CLIENT`
//	subscribed
//	acknowledged PAYLOAD        or `failed PAYLOAD`, if the connection was lost before. No number is published twice.
//	arrived PAYLOAD ID QOS DUP  a PUBLISH packet for the subscriber, in the order of the connection
//	released ID                 a PUBREL packet for the subscriber
//	received PAYLOAD            a call of the message handler of the subscriber
//	done
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
	"golang.org/x/net/proxy"
)

const (
	window          = 20
	windowPause     = 5 * time.Millisecond
	connectionPause = 50 * time.Millisecond
	quiesceMs       = 250
)

// connection is a client that has connected. The client is not used again after it has lost its connection.
type connection struct {
	client mqtt.Client
	lost   chan struct{}
}

// connect tries to connect until it succeeds. `prepare` is called with each new client before it connects.
func connect(name string, options *mqtt.ClientOptions, prepare func(mqtt.Client)) connection {
	for {
		lost := make(chan struct{})
		options.SetConnectionLostHandler(func(client mqtt.Client, _ error) {
			// Telegraf does this too. It ends the goroutine that calls the message handlers.
			client.Disconnect(5)
			fmt.Println("lost", name)
			close(lost)
		})
		client := mqtt.NewClient(options)
		prepare(client)
		token := client.Connect()
		if token.Wait() && token.Error() == nil {
			fmt.Println("connected", name)
			return connection{client, lost}
		}
		time.Sleep(connectionPause)
	}
}

// isAcknowledged waits until the broker has acknowledged a packet or the connection is lost.
func (c connection) isAcknowledged(token mqtt.Token) bool {
	done := make(chan bool, 1)
	go func() {
		token.Wait()
		done <- token.Error() == nil
	}()
	select {
	case isAcknowledged := <-done:
		return isAcknowledged
	case <-c.lost:
		return false
	}
}

// socket is a connection whose writes succeed also after it is lost, so that the library detects the loss only by reading.
// Version 1.1.1 panics if it cannot write an acknowledgement: it then uses a token that this packet does not have.
type socket struct {
	net.Conn
}

func (s socket) Write(data []byte) (int, error) {
	s.Conn.Write(data)
	return len(data), nil
}

type dialer struct{}

func (dialer) Dial(network string, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return socket{conn}, nil
}

// useSockets makes the library connect with `dialer`. The proxy in the environment is the only way to replace its dialer.
func useSockets() {
	proxy.RegisterDialerType("socket", func(*url.URL, proxy.Dialer) (proxy.Dialer, error) { return dialer{}, nil })
	for _, name := range []string{"ALL_PROXY", "all_proxy"} {
		os.Setenv(name, "socket://socket")
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		os.Unsetenv(name)
	}
}

// commonOptions returns the options of both clients.
func commonOptions(address string, clientID string) *mqtt.ClientOptions {
	options := mqtt.NewClientOptions()
	options.AddBroker(address)
	options.SetClientID(clientID)
	options.SetUsername("guest")
	options.SetPassword("guest")
	options.SetConnectTimeout(30 * time.Second)
	options.SetAutoReconnect(false)
	options.SetKeepAlive(60 * time.Second)
	options.SetPingTimeout(10 * time.Second)
	return options
}

// arrivals is the memory store that the library uses by default. It prints the packets that the library puts into it.
type arrivals struct {
	mqtt.Store
}

// Put is called for each packet before the library answers it.
func (a arrivals) Put(key string, packet packets.ControlPacket) {
	// The keys of received packets begin with `i.`.
	if strings.HasPrefix(key, "i.") {
		switch p := packet.(type) {
		case *packets.PublishPacket:
			fmt.Println("arrived", string(p.Payload), p.MessageID, p.Qos, p.Dup)
		case *packets.PubrelPacket:
			fmt.Println("released", p.MessageID)
		}
	}
	a.Store.Put(key, packet)
}

// receive subscribes, and connects again after each lost connection. It closes `subscribed` when it has subscribed for the
// first time. It returns when it has received `end`.
func receive(address string, qos byte, always bool, subscribed chan struct{}) {
	const filter = "go/#"
	ended := make(chan struct{}, 1)
	onMessage := func(_ mqtt.Client, message mqtt.Message) {
		payload := string(message.Payload())
		fmt.Println("received", payload)
		if payload == "end" {
			select {
			case ended <- struct{}{}:
			default:
			}
		}
	}
	isFirst := true
	for {
		options := commonOptions(address, "go-subscriber")
		options.SetCleanSession(false)
		options.SetStore(arrivals{mqtt.NewMemoryStore()})
		// The broker may send messages of the session before the client subscribes.
		c := connect("subscriber", options, func(client mqtt.Client) { client.AddRoute(filter, onMessage) })
		if isFirst || always {
			token := c.client.SubscribeMultiple(map[string]byte{filter: qos}, onMessage)
			if c.isAcknowledged(token) {
				fmt.Println("subscribed")
				if isFirst {
					close(subscribed)
				}
				isFirst = false
			}
		}
		select {
		case <-ended:
			c.client.Disconnect(quiesceMs)
			return
		case <-c.lost:
		}
	}
}

// publishAll publishes the payloads in this order. It returns whether the broker has acknowledged all.
func (c connection) publishAll(payloads []string, qos byte) bool {
	tokens := make(chan mqtt.Token, len(payloads))
	// `Publish` of version 1.1.1 may never return if the connection is lost meanwhile.
	go func() {
		for _, payload := range payloads {
			tokens <- c.client.Publish("go/numbers", qos, false, payload)
		}
	}()
	succeeded := true
	for _, payload := range payloads {
		isAcknowledged := false
		select {
		case token := <-tokens:
			isAcknowledged = c.isAcknowledged(token)
		case <-c.lost:
		}
		if isAcknowledged {
			fmt.Println("acknowledged", payload)
		} else {
			fmt.Println("failed", payload)
			succeeded = false
		}
	}
	return succeeded
}

// publish publishes numbers until `stop` is closed, and then `end`.
func publish(address string, qos byte, stop chan struct{}) {
	next := 0
	for {
		c := connect("publisher", commonOptions(address, "go-publisher"), func(mqtt.Client) {})
		for isConnected := true; isConnected; {
			select {
			case <-stop:
				if c.publishAll([]string{"end"}, qos) {
					c.client.Disconnect(quiesceMs)
					return
				}
				isConnected = false
				<-c.lost
			case <-c.lost:
				isConnected = false
			case <-time.After(windowPause):
				payloads := []string{}
				for ; len(payloads) < window; next++ {
					payloads = append(payloads, strconv.Itoa(next))
				}
				if !c.publishAll(payloads, qos) {
					isConnected = false
					<-c.lost
				}
			}
		}
	}
}

func main() {
	useSockets()
	mqtt.ERROR = log.New(os.Stderr, "# ", 0)
	mqtt.CRITICAL = log.New(os.Stderr, "# ", 0)
	address, always := os.Args[1], os.Args[3] == "always"
	qos, err := strconv.ParseUint(os.Args[2], 10, 2)
	if err != nil {
		log.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		bufio.NewReader(os.Stdin).ReadString('\n')
		close(stop)
	}()
	subscribed, received := make(chan struct{}), make(chan struct{})
	go func() {
		receive(address, byte(qos), always, subscribed)
		close(received)
	}()
	<-subscribed
	publish(address, byte(qos), stop)
	<-received
	fmt.Println("done")
}
