%% `nats_gateway check': logs in to the broker as a client would, and says what the broker grants, what
%% the probe finds, and what clients will therefore have.
-module(nats_gateway_broker_check).

-export([main/1]).

-include("nats_gateway_exit.hrl").
-include("nats_gateway_mqtt.hrl").

-define(USAGE, <<
    "usage: nats_gateway check [-c FILE] [--upstream mqtt[s]://HOST:PORT] [--user USER] [--password PASSWORD]\n"
    "                          [--json]\n"
    "  Logs in to the broker with the settings, tries it out, and says what NATS clients will have.\n"
    "  --user, --password  what a client's CONNECT has; NATS_USER and NATS_PASSWORD of the environment, too\n"
    "Exit status: 0, 69 if the broker is not there or refuses the login, 78 for a wrong setting.\n"
>>).

%% As long as the first client waits for the probe, and for messages that come after their answers.
-define(ANSWERS_MS, 2000).
-define(LATE_MS, 300).

%% Identifiers of packets that the probe does not use.
-define(AFTER_PROBE, 5).
-define(NO_LOCAL, 6).
-define(TO_NOBODY, 8).

-define(NO_MATCHING_SUBSCRIBERS, 16#10).

%% Throws `{stop, ExitStatus, Text}' for what is wrong.
-spec main([string()]) -> no_return().
main(Arguments) ->
    Options = arguments(Arguments, environment()),
    try
        Config = nats_gateway_settings:read(Options),
        {ok, _} = application:ensure_all_started(crypto),
        nats_gateway_broker_report:print(find_out(Options, Config), Config, is_map_key(json, Options)),
        erlang:halt(0)
    catch
        throw:{stop, Status, Text} when is_map_key(json, Options) ->
            nats_gateway_broker_report:print_error(Text, Status),
            erlang:halt(Status)
    end.

environment() ->
    maps:from_list([
        {Key, nats_gateway_settings:argument(Value)}
     || {Key, Name} <- [{user, "NATS_USER"}, {password, "NATS_PASSWORD"}],
        Value <- [os:getenv(Name)],
        Value =/= false
    ]).

arguments([], Options) ->
    Options;
arguments([Help | _], _) when Help =:= "-h"; Help =:= "--help" ->
    ok = file:write(standard_io, ?USAGE),
    erlang:halt(0);
arguments(["--json" | Rest], Options) ->
    arguments(Rest, Options#{json => true});
arguments(["-c", File | Rest], Options) ->
    arguments(Rest, Options#{file => File});
arguments([Option, Value | Rest], Options) when
    Option =:= "--upstream"; Option =:= "--user"; Option =:= "--password"
->
    "--" ++ Name = Option,
    arguments(Rest, Options#{list_to_existing_atom(Name) => nats_gateway_settings:argument(Value)});
arguments([Option], _) when
    Option =:= "-c"; Option =:= "--upstream"; Option =:= "--user"; Option =:= "--password"
->
    throw({stop, ?EX_USAGE, ["check: ", Option, " needs a value; --help lists the options"]});
arguments([Unknown | _], _) ->
    throw({stop, ?EX_USAGE, ["check: unknown option ", Unknown, "; --help lists them"]}).

%% -------------------------------------------------------------------------------------------

find_out(Options, Config = #{upstream := Upstream}) ->
    #{probe := IsProbed} = Upstream,
    {Session, Username, Password} = credentials(Options, Config),
    {Granted, Client} = log_in(Session, Username, Password, Upstream),
    Known = #{granted => Granted},
    {Findings, Last} =
        case IsProbed of
            true -> try_out(Session, Granted, Client);
            false -> {#{probe => off}, Client}
        end,
    _ = Last =/= gone andalso nats_gateway_mqtt_client:stop(Last),
    maps:merge(Known, Findings).

%% As those of a client that sends this user and password.
credentials(Options, Config = #{login := Login}) ->
    Fields = maps:from_list(
        [{user, User} || #{user := User} <- [Options]] ++
            [{pass, Password} || #{password := Password} <- [Options]]
    ),
    Client = #{
        connect => Fields,
        config => Config,
        client_id => 1,
        transport => tcp,
        listener => <<"check">>,
        peername => {{127, 0, 0, 1}, 0},
        sockname => {{127, 0, 0, 1}, 0},
        peercert => nossl
    },
    LoggedIn =
        case {nats_gateway_login:auth_required(Login, false), Fields} of
            {true, #{user := Name}} -> Client#{login => #{method => password, username => Name}};
            _ -> Client
        end,
    case nats_gateway_mqtt_login:credentials(LoggedIn) of
        {ok, Session, Username, Password} -> {Session, Username, Password};
        error -> throw({stop, ?EX_CONFIG, "no broker can know such a client id, user or mountpoint"})
    end.

log_in(#{clientid := Id}, Username, Password, Upstream) ->
    #{connect_timeout := Timeout, keepalive := KeepAlive} = Upstream,
    Socket = nats_gateway_reach:open(Upstream),
    Connect = #connect{
        client_id = Id, username = Username, password = Password, keepalive = KeepAlive
    },
    Started = nats_gateway_mqtt_client:start(Socket, Connect, #{
        timeout => Timeout, keepalive => KeepAlive, max_received => 1048576, watched => false
    }),
    case Started of
        {ok, Client} -> await_login(Client, Upstream);
        {error, Reason} -> refused(nats_gateway_upstream:explain(Reason), Upstream)
    end.

await_login(Client, Upstream) ->
    case events(Client, infinity) of
        {[{connected, Granted} | _], NClient} ->
            {Granted, NClient};
        {[{refused, Code, Properties} | _], _} ->
            Said = [[": ", Text] || #{reason_string := Text} <- [Properties]],
            Name = io_lib:format("~p", [nats_gateway_mqtt_reason:name(Code)]),
            refused(["reason code ", integer_to_list(Code), ", ", Name, Said], Upstream);
        {[{closed, Ending, _} | _], _} ->
            refused(explain(Ending), Upstream);
        {_, NClient} ->
            await_login(NClient, Upstream)
    end.

-spec refused(iodata(), nats_gateway_upstream:upstream()) -> no_return().
refused(Why, Upstream) ->
    throw(
        {stop, ?EX_UNAVAILABLE, [
            "the broker at ",
            nats_gateway_reach:url(Upstream),
            " (upstream.url) does not accept a login (",
            Why,
            "); --user and --password are what a client sends, clientinfo_override what becomes of it"
        ]}
    ).

explain(no_answer) -> "it does not answer within upstream.connect_timeout";
explain(closed) -> "it closes the connection";
explain({fault, old_version}) -> "it does not speak MQTT 5";
explain({disconnect, Code, _}) -> io_lib:format("it disconnects: ~p", [nats_gateway_mqtt_reason:name(Code)]);
explain(_) -> "it does not speak MQTT".

%% -------------------------------------------------------------------------------------------
%% The probe of the first client, and what else the report says

try_out(#{mountpoint := Mountpoint}, Granted, Client) ->
    {Packets, Probe} = nats_gateway_probe:start(Mountpoint, #{
        maximum_qos => maps:get(maximum_qos, Granted, 2),
        wildcard_subscription_available => maps:get(wildcard_subscription_available, Granted, true),
        shared_subscription_available => maps:get(shared_subscription_available, Granted, true),
        subscription_identifier_available => maps:get(subscription_identifier_available, Granted, true)
    }),
    case probe(Probe, nats_gateway_mqtt_client:hand_over(Packets, Client), now_ms() + ?ANSWERS_MS) of
        gone ->
            {#{probe => hung_up}, gone};
        {Probed, NClient} ->
            Outcome = nats_gateway_probe:quirks(Probed),
            {More, Last} = try_more(Mountpoint, Granted, NClient),
            {More#{probe => Outcome}, Last}
    end.

probe(Probe, Client, Until) ->
    case events(Client, Until) of
        timeout ->
            {Probe, Client};
        {Events, NClient} ->
            case probe_events(Events, more, Probe) of
                gone -> gone;
                {more, NProbe} -> probe(NProbe, NClient, Until);
                {late, NProbe} -> probe(NProbe, NClient, min(Until, now_ms() + ?LATE_MS));
                {done, NProbe} -> {NProbe, NClient}
            end
    end.

probe_events([], Progress, Probe) ->
    {Progress, Probe};
probe_events([{packet, Packet} | Events], _, Probe) ->
    {Progress, NProbe} = nats_gateway_probe:packet(Packet, Probe),
    probe_events(Events, Progress, NProbe);
probe_events([{closed, _, _} | _], _, _) ->
    gone;
probe_events([_ | Events], Progress, Probe) ->
    probe_events(Events, Progress, Probe).

%% Whether No Local holds, and whether PUBACK says that there are no subscribers.
try_more(Mountpoint, Granted, Client) ->
    Topic = <<Mountpoint/binary, "nats_gateway/probe/", (binary:encode_hex(crypto:strong_rand_bytes(8)))/binary>>,
    HasAnswers = maps:get(maximum_qos, Granted, 2) > 0,
    Packets =
        [
            #subscribe{packet_id = ?NO_LOCAL, filters = [{Topic, 0, true, 2}]},
            #publish{topic = Topic}
        ] ++
            [#publish{topic = <<Topic/binary, "/nobody">>, qos = 1, packet_id = ?TO_NOBODY} || HasAnswers] ++
            [pingreq],
    Taken = nats_gateway_mqtt_client:take_over(?AFTER_PROBE, Client),
    collect(nats_gateway_mqtt_client:hand_over(Packets, Taken), now_ms() + ?ANSWERS_MS, #{
        topic => Topic,
        subscribed => false,
        no_local => true,
        tells_no_subscribers => false,
        ponged => false,
        acknowledged => not HasAnswers
    }).

collect(Client, Until, Seen) ->
    case events(Client, Until) of
        timeout ->
            {found(Seen), Client};
        {Events, NClient} ->
            case lists:keymember(closed, 1, [Event || Event <- Events, is_tuple(Event)]) of
                true ->
                    {found(Seen#{subscribed := false}), gone};
                false ->
                    NSeen = lists:foldl(fun see/2, Seen, [Packet || {packet, Packet} <- Events]),
                    collect(NClient, until(Seen, NSeen, Until), NSeen)
            end
    end.

%% What is not there a moment after all answers does not come.
until(Before, Seen, Until) ->
    case not is_answered(Before) andalso is_answered(Seen) of
        true -> min(Until, now_ms() + ?LATE_MS);
        false -> Until
    end.

is_answered(#{ponged := Ponged, acknowledged := Acknowledged, subscribed := Subscribed}) ->
    Ponged andalso Acknowledged andalso Subscribed =/= false.

see(pingresp, Seen) -> Seen#{ponged := true};
see(#suback{packet_id = ?NO_LOCAL, reasons = [Reason]}, Seen) -> Seen#{subscribed := Reason};
see(#publish{topic = Topic}, Seen = #{topic := Topic}) -> Seen#{no_local := false};
see(#puback{packet_id = ?TO_NOBODY, reason = Reason}, Seen) ->
    Seen#{acknowledged := true, tells_no_subscribers := Reason =:= ?NO_MATCHING_SUBSCRIBERS};
see(_, Seen) -> Seen.

%% Without a subscription nothing is known of No Local.
found(#{subscribed := Reason, no_local := NoLocal, tells_no_subscribers := Tells}) ->
    NoLocals = [{no_local, NoLocal} || is_integer(Reason), Reason < 16#80],
    maps:from_list([{tells_no_subscribers, Tells} | NoLocals]).

%% -------------------------------------------------------------------------------------------

events(Client, Until) ->
    receive
        Message ->
            case nats_gateway_mqtt_client:handle_info(Message, Client) of
                ignore -> events(Client, Until);
                {Events, NClient} -> {Events, NClient}
            end
    after left(Until) -> timeout
    end.

left(infinity) -> infinity;
left(Until) -> max(0, Until - now_ms()).

now_ms() -> erlang:monotonic_time(millisecond).
