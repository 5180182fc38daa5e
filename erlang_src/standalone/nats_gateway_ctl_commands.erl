%% The commands of `nats_gateway ctl', in the gateway: what each does, and what it answers, for people
%% or as JSON.
-module(nats_gateway_ctl_commands).

-export([parse/1]).
-export([run/1]).

-include("nats_gateway_exit.hrl").

-type command() ::
    {status | reload | drain, json | text}
    | {clients, json | text, #{user => binary()}}
    | {kick, json | text, #{cid => pos_integer(), user => binary()}}.

%% `kick' has found nobody.
-define(NOBODY, 1).

-define(KICK_MS, 5000).
-define(EVERYBODY, 1 bsl 30).

-define(COLUMN_GAP, "  ").

%% Also used before there is a connection to the gateway.
-spec parse([binary()]) -> {ok, command()} | {error, Text :: iodata()}.
parse([Name | Words]) when Name =:= <<"status">>; Name =:= <<"reload">>; Name =:= <<"drain">> ->
    case options(Words, #{}) of
        {ok, Options} when not is_map_key(user, Options), not is_map_key(cid, Options) ->
            {ok, {binary_to_existing_atom(Name), form(Options)}};
        {ok, _} ->
            {error, [Name, " has no such argument; --help lists them"]};
        Error ->
            Error
    end;
parse([<<"clients">> | Words]) ->
    case options(Words, #{}) of
        {ok, #{cid := _}} -> {error, "clients has no such argument; --help lists them"};
        {ok, Options} -> {ok, {clients, form(Options), maps:with([user], Options)}};
        Error -> Error
    end;
parse([<<"kick">> | Words]) ->
    case options(Words, #{}) of
        {ok, Options} when is_map_key(user, Options) =/= is_map_key(cid, Options) ->
            {ok, {kick, form(Options), maps:with([cid, user], Options)}};
        {ok, _} ->
            {error, "kick needs the cid of a client, or --user USER"};
        Error ->
            Error
    end;
parse([Unknown | _]) ->
    {error, ["unknown command ", Unknown, "; --help lists them"]};
parse([]) ->
    {error, "a command is missing; --help lists them"}.

options([], Options) ->
    {ok, Options};
options([<<"--json">> | Words], Options) ->
    options(Words, Options#{json => true});
options([<<"--user">>, User | Words], Options) ->
    options(Words, Options#{user => User});
options([<<"--user">>], _) ->
    {error, "--user needs the name of a user"};
options([Word | Words], Options) when not is_map_key(cid, Options) ->
    try binary_to_integer(Word) of
        Cid when Cid > 0 -> options(Words, Options#{cid => Cid});
        _ -> {error, [Word, " is no cid"]}
    catch
        error:badarg -> {error, ["unknown argument ", Word, "; --help lists them"]}
    end;
options([Word | _], _) ->
    {error, ["unknown argument ", Word, "; --help lists them"]}.

form(#{json := true}) -> json;
form(#{}) -> text.

-spec run([binary()]) -> {Status :: byte(), Text :: binary()}.
run(Words) ->
    {Status, Text} = do(Words),
    {Status, to_binary(Text)}.

to_binary(Text) ->
    case unicode:characters_to_binary(Text) of
        Binary when is_binary(Binary) -> Binary;
        %% A word of the command that is no text.
        _ -> <<"the command is not UTF-8">>
    end.

do(Words) ->
    case parse(Words) of
        {ok, {status, Form}} -> {0, status(Form)};
        {ok, {clients, Form, Options}} -> {0, clients(Form, Options)};
        {ok, {kick, Form, Wanted}} -> kick(Form, Wanted);
        {ok, {reload, Form}} -> reload(Form);
        {ok, {drain, Form}} -> {0, drain(Form)};
        %% of a newer gateway, perhaps
        {error, Text} -> {?EX_USAGE, Text}
    end.

json(Term) -> [nats_gateway_nif:json(Term), $\n].

%% -------------------------------------------------------------------------------------------
%% status

status(Form) ->
    Gateway = #{listeners := Listeners, started := Started} = nats_gateway_standalone_monitor:gateway(),
    #{connections := Connections, subscriptions := Subscriptions} =
        nats_gateway_monitor_facts:statsz(Gateway),
    {Upstream, Reachable} = nats_gateway_standalone_monitor:broker(),
    Broker = nats_gateway_reach:url(Upstream),
    IsLameDuck = nats_gateway_standalone_monitor:is_lame_duck(),
    Up = erlang:system_time(millisecond) - Started,
    Open = [{Name, address(Bind)} || #{name := Name, bind := Bind} <- Listeners, not IsLameDuck],
    case Form of
        json ->
            json(#{
                version => version(),
                pid => list_to_integer(os:getpid()),
                uptime_seconds => Up div 1000,
                listeners => [#{name => Name, address => Address} || {Name, Address} <- Open],
                broker => reachability(#{url => Broker}, Reachable),
                connections => Connections,
                subscriptions => Subscriptions,
                lame_duck => IsLameDuck
            });
        text ->
            [
                [Key, ": ", Value, $\n]
             || {Key, Value} <-
                    [
                        {"version", version()},
                        {"pid", os:getpid()},
                        {"uptime", nats_gateway_monitor_facts:uptime(Up)}
                    ] ++ [{"listener", [Name, $\s, Address]} || {Name, Address} <- Open] ++
                        [
                            {"broker", Broker},
                            {"broker reachable", yes_or_why(Reachable)},
                            {"connections", integer_to_list(Connections)},
                            {"subscriptions", integer_to_list(Subscriptions)},
                            {"lame duck", yes_or_no(IsLameDuck)}
                        ]
            ]
    end.

reachability(Broker, ok) -> Broker#{reachable => true};
reachability(Broker, {error, Why}) -> Broker#{reachable => false, reason => iolist_to_binary(Why)}.

yes_or_why(ok) -> "yes";
yes_or_why({error, Why}) -> ["no: ", Why].

yes_or_no(true) -> "yes";
yes_or_no(false) -> "no".

version() ->
    {ok, Version} = application:get_key(nats_gateway, vsn),
    list_to_binary(Version).

address(Bind) -> list_to_binary(nats_gateway_address:format(Bind)).

%% -------------------------------------------------------------------------------------------
%% clients and kick

clients(Form, Options) ->
    Listed = nats_gateway_monitor_facts:connz(
        Options#{
            sort => cid, offset => 0, limit => ?EVERYBODY, state => open, subs => none, auth => true
        },
        nats_gateway_standalone_monitor:gateway()
    ),
    case Form of
        json -> json(maps:without([offset, limit, total], Listed));
        text -> table([heads() | [columns(Client) || Client <- maps:get(connections, Listed)]])
    end.

heads() ->
    [
        "CID", "ADDRESS", "USER", "NAME", "LANG", "VERSION", "SUBS", "MSGS IN", "MSGS OUT", "BYTES IN",
        "BYTES OUT", "PENDING", "UPTIME"
    ].

columns(Client = #{cid := Cid, uptime := Uptime}) ->
    Texts = [maps:get(Key, Client, <<>>) || Key <- [authorized_user, name, lang, version]],
    Numbers = [
        integer_to_list(maps:get(Key, Client))
     || Key <- [subscriptions, in_msgs, out_msgs, in_bytes, out_bytes, pending_bytes]
    ],
    [integer_to_list(Cid), peer(Client)] ++ [shown(Text) || Text <- Texts] ++ Numbers ++ [Uptime].

%% A client that does not answer is listed with what is known.
peer(#{ip := Ip, port := Port}) -> nats_gateway_address:format({binary_to_list(Ip), Port});
peer(#{}) -> "-".

%% It is what a client says of itself, and goes to a terminal.
shown(<<>>) ->
    "-";
shown(Text) ->
    [
        if
            C =< 16#20; C >= 16#7F, C =< 16#A0; C =:= 16#2028; C =:= 16#2029; C >= 16#202A, C =< 16#202E -> $?;
            true -> C
        end
     || C <- unicode:characters_to_list(Text)
    ].

table(Rows) ->
    Lines = [[unicode:characters_to_list(Cell) || Cell <- Row] || Row <- Rows],
    Widths = lists:foldl(
        fun(Line, Acc) -> lists:zipwith(fun(Cell, Width) -> max(string:length(Cell), Width) end, Line, Acc) end,
        [0 || _ <- hd(Lines)],
        Lines
    ),
    unicode:characters_to_binary([
        [
            string:trim(
                lists:append(lists:join(?COLUMN_GAP, lists:zipwith(fun padded/2, Line, Widths))), trailing
            ),
            $\n
        ]
     || Line <- Lines
    ]).

padded(Cell, Width) -> Cell ++ lists:duplicate(Width - string:length(Cell), $\s).

kick(Form, Wanted) ->
    Kicked = nats_gateway_connection:kick(nats_gateway_monitor_facts:pids(Wanted), ?KICK_MS),
    Status =
        case Kicked of
            0 -> ?NOBODY;
            _ -> 0
        end,
    case Form of
        json -> {Status, json(#{kicked => Kicked})};
        text -> {Status, kicked(Kicked, Wanted)}
    end.

kicked(0, #{cid := Cid}) -> io_lib:format("no client has the cid ~b~n", [Cid]);
kicked(0, #{user := User}) -> ["no client is logged in as ", shown(User), $\n];
kicked(1, _) -> "1 client was closed\n";
kicked(N, _) -> io_lib:format("~b clients were closed~n", [N]).

%% -------------------------------------------------------------------------------------------
%% reload and drain

reload(Form) ->
    case {nats_gateway_control:reload(), Form} of
        {{ok, Report = #{problems := Problems}}, _} ->
            Status =
                case Problems of
                    [] -> 0;
                    _ -> ?EX_UNAVAILABLE
                end,
            {Status, reloaded(Form, Report)};
        {{error, Text}, text} ->
            {?EX_CONFIG, ["nothing was changed: ", Text, $\n]};
        {{error, Text}, json} ->
            {?EX_CONFIG, json(#{error => iolist_to_binary(Text)})}
    end.

reloaded(json, Report) ->
    json(Report);
reloaded(text, Report = #{certificates := Certificates, problems := Problems}) ->
    Lines = [
        [What, ": ", lists:join(", ", Names), $\n]
     || {What, Key} <- [
            {"changed", changed},
            {"listeners opened", listeners_opened},
            {"listeners closed", listeners_closed},
            {"listeners changed", listeners_changed}
        ],
        Names <- [maps:get(Key, Report)],
        Names =/= []
    ],
    [
        case Lines of
            [] when Problems =:= [] -> "the settings are what they were\n";
            _ -> Lines
        end,
        [["certificates read again: ", lists:join(", ", Certificates), $\n] || Certificates =/= []],
        [["not changed: ", Problem, $\n] || Problem <- Problems]
    ].

drain(Form) ->
    {Begun, Milliseconds} =
        case nats_gateway_control:drain() of
            {begun, Duration} -> {true, Duration};
            already -> {false, 0}
        end,
    case Form of
        json when Begun -> json(#{lame_duck => true, begun => true, milliseconds => Milliseconds});
        json -> json(#{lame_duck => true, begun => false});
        text when Begun ->
            io_lib:format(
                "lame duck mode: nobody new is accepted, and the gateway ends when the last client has gone, "
                "in ~s at the latest~n",
                [nats_gateway_monitor_facts:uptime(Milliseconds)]
            );
        text ->
            "the gateway is in lame duck mode already\n"
    end.
