%% Settings: from the file's tables to one checked map with every default filled in.
%%
%% Names are those of the EMQX gateway settings; units and defaults stand in README.md.
-module(nats_gateway_config).

-export([parse/1]).
-export([defaults/0]).
-export([check/2]).
-export([login_schema/0]).
-export([login/1]).
-export([page_login/1]).

-export_type([config/0, listener/0, schema/0]).

%% Times are milliseconds, sizes bytes.
-type config() :: #{
    server_id := binary(),
    %% known to this gateway alone, new at every start
    secret := binary(),
    server_name := binary(),
    mountpoint := binary(),
    default_heartbeat_interval := pos_integer() | infinity,
    heartbeat_wait_timeout := pos_integer(),
    idle_timeout := pos_integer() | infinity,
    authentication_timeout := pos_integer(),
    auth_required := boolean(),
    %% the gateway's own, before the broker's
    login := nats_gateway_login:login(),
    max_payload_size := non_neg_integer(),
    max_control_line := pos_integer(),
    max_subscriptions := pos_integer() | infinity,
    retained_on_subscribe := boolean(),
    enable_stats := boolean(),
    clientinfo_override := #{clientid | username | password => binary()},
    log_level := logger:level(),
    upstream := #{
        host := string() | inet:ip_address(),
        port := inet:port_number(),
        connect_timeout := pos_integer(),
        keepalive := pos_integer(),
        authentication := boolean()
    },
    listeners := [listener()]
}.

-type listener() :: #{
    name := binary(),
    bind := {inet:ip_address(), inet:port_number()},
    acceptors := pos_integer(),
    max_connections := pos_integer() | infinity,
    backlog := pos_integer(),
    send_timeout := pos_integer()
}.

%% nats-protocol section 1: sizes have at most 9 digits.
-define(MAX_PAYLOAD_LIMIT, 999999999).

-type kind() ::
    string
    | boolean
    | {duration, Min :: 0 | 1}
    | {duration, Min :: 0 | 1, Max :: pos_integer()}
    | {bytes, Min :: non_neg_integer(), Max :: pos_integer()}
    | {integer, Min :: integer(), Max :: pos_integer()}
    %% 0 is no limit
    | {limit, Max :: pos_integer()}
    | address
    | url
    | {one_of, [atom()]}
    | {table, schema()}
    %% any name: the same table under each
    | {named, schema()}
    | {list, kind()}
    %% a table whose key `type' says what else there is
    | {by_type, #{atom() => schema()}}
    %% a password or token, or its bcrypt hash
    | secret
    %% the same, and an empty one is none
    | optional_secret
    %% a public NKey of a user
    | user_key
    %% a subject, a list of subjects, or a table of `allow' and `deny'
    | {subjects, queues | no_queues}
    | responses.

%% A default that is `required' must be given; `undefined' says that nothing is there.
-type schema() :: #{atom() => {kind(), Default :: term()}}.

-spec schema() -> schema().
schema() ->
    (login_schema())#{
        server_name => {string, <<"nats_gateway">>},
        mountpoint => {string, <<>>},
        default_heartbeat_interval => {{duration, 0}, 60000},
        heartbeat_wait_timeout => {{duration, 1}, 5000},
        idle_timeout => {{duration, 0}, 30000},
        authentication_timeout => {{duration, 1}, 2000},
        auth_required => {boolean, false},
        max_payload_size => {{bytes, 0, ?MAX_PAYLOAD_LIMIT}, 1048576},
        max_control_line => {{bytes, 1, ?MAX_PAYLOAD_LIMIT}, 4096},
        max_connections => {{limit, 1 bsl 30}, infinity},
        max_subscriptions => {{limit, 1 bsl 30}, infinity},
        retained_on_subscribe => {boolean, false},
        enable_stats => {boolean, true},
        users => {{list, {table, user_schema()}}, []},
        no_auth_user => {string, undefined},
        auth_token => {secret, undefined},
        log_level =>
            {{one_of, [emergency, alert, critical, error, warning, notice, info, debug, none]},
                notice},
        clientinfo_override =>
            {
                {table, #{
                    clientid => {string, <<"${generated}">>},
                    username => {string, undefined},
                    password => {string, undefined}
                }},
                #{}
            },
        upstream =>
            {
                {table, #{
                    url => {url, {"127.0.0.1", 1883}},
                    connect_timeout => {{duration, 1}, 5000},
                    authentication => {boolean, false},
                    keepalive => {{integer, 1, 65535}, 60}
                }},
                #{}
            },
        listeners => {{table, #{tcp => {{named, listener_schema()}, #{}}}}, #{}}
    }.

%% The methods of EMQX's gateway settings, with the same names.
-spec login_schema() -> schema().
login_schema() ->
    Preload = #{pubkey => {string, required}, jwt => {string, required}},
    #{
        internal_authn =>
            {
                {list,
                    {by_type, #{
                        token => #{token => {secret, required}},
                        nkey => #{nkeys => {{list, user_key}, required}},
                        jwt => #{
                            trusted_operators => {{list, string}, required},
                            resolver =>
                                {
                                    {table, #{
                                        type => {{one_of, [memory]}, memory},
                                        resolver_preload => {{list, {table, Preload}}, required}
                                    }},
                                    required
                                }
                        }
                    }}},
                []
            }
    }.

user_schema() ->
    #{
        user => {string, undefined},
        password => {secret, undefined},
        nkey => {user_key, undefined},
        permissions =>
            {
                {table, #{
                    publish => {{subjects, no_queues}, #{allow => all, deny => []}},
                    subscribe => {{subjects, queues}, #{allow => all, deny => []}},
                    allow_responses => {responses, undefined}
                }},
                #{}
            }
    }.

listener_schema() ->
    #{
        bind => {address, {{127, 0, 0, 1}, 4222}},
        acceptors => {{integer, 1, 1024}, 16},
        max_connections => {{limit, 1 bsl 30}, infinity},
        backlog => {{integer, 1, 65535}, 1024},
        send_timeout => {{duration, 1}, 10000}
    }.

%% The settings of an empty file.
-spec defaults() -> config().
defaults() ->
    {ok, Config} = parse(#{}),
    Config.

%% The tables of a file as `nats_gateway_mqtt_nif:toml/1' gives them: binary keys.
-spec parse(map()) -> {ok, config()} | {error, Text :: binary()}.
parse(Tables) ->
    checked(fun() -> finish(table(schema(), Tables, [])) end).

%% The settings of a schema, with its defaults for those that are not there.
-spec check(schema(), map()) -> {ok, map()} | {error, Text :: binary()}.
check(Schema, Tables) ->
    checked(fun() -> table(Schema, Tables, []) end).

checked(Read) ->
    try
        {ok, Read()}
    catch
        throw:{invalid, Path, Problem} ->
            {error, iolist_to_binary([path(Path), <<": ">>, Problem])}
    end.

finish(Settings = #{upstream := Upstream, listeners := #{tcp := Tcp}}) ->
    #{max_connections := Max, auth_required := OfBroker} = Settings,
    Login = own_login(Settings),
    {Host, Port} = maps:get(url, Upstream),
    Named =
        case map_size(Tcp) of
            0 -> #{<<"default">> => table(listener_schema(), #{}, [])};
            _ -> Tcp
        end,
    NotKept = [max_connections, internal_authn, users, no_auth_user, auth_token],
    (maps:without(NotKept, Settings))#{
        login => Login,
        auth_required := nats_gateway_login:auth_required(Login, OfBroker),
        server_id => server_id(),
        secret => crypto:strong_rand_bytes(32),
        upstream := (maps:remove(url, Upstream))#{host => Host, port => Port},
        listeners := [
            Listener#{
                name => <<"tcp:", Name/binary>>,
                max_connections := min(Max, maps:get(max_connections, Listener))
            }
         || {Name, Listener} <- lists:sort(maps:to_list(Named))
        ]
    }.

%% The order of nats-server: JWT and NKeys, users, token.
own_login(Settings) ->
    #{users := Users, no_auth_user := NoAuthUser, auth_token := Token, upstream := Upstream} =
        Settings,
    ok = distinct([Name || #{user := Name} <- Users, Name =/= undefined], <<"users">>),
    ok = distinct([Key || #{nkey := Key} <- Users, Key =/= undefined], <<"users">>),
    Methods =
        methods(Settings) ++
            [{users, [user(N, User) || {N, User} <- numbered(Users)]} || Users =/= []] ++
            [{token, Token} || Token =/= undefined],
    new_login(#{
        methods => Methods,
        no_auth_user => NoAuthUser,
        falls_through => maps:get(authentication, Upstream)
    }).

%% The login of settings with `login_schema/0' in them.
-spec login(Settings :: map()) ->
    {ok, nats_gateway_login:login()} | {error, Text :: binary()}.
login(Settings) ->
    checked(fun() -> new_login(#{methods => methods(Settings)}) end).

%% The login of the plugin's page: `internal_authn' is the order of the methods, and what they need
%% stands beside it.
-spec page_login(Settings :: map()) ->
    {ok, nats_gateway_login:login()} | {error, Text :: binary()}.
page_login(Settings = #{internal_authn := Types}) ->
    checked(fun() ->
        ok = distinct(Types, <<"internal_authn">>),
        lists:foreach(
            fun({Key, Type, Unset}) ->
                IsUsed = lists:member(Type, Types),
                case maps:get(Key, Settings) of
                    Unset when IsUsed ->
                        invalid([atom_to_binary(Key)], <<"must not be empty">>);
                    Value when Value =/= Unset, not IsUsed ->
                        invalid([atom_to_binary(Key)], [
                            <<"is not used without ">>, atom_to_binary(Type), <<" in internal_authn">>
                        ]);
                    _ ->
                        ok
                end
            end,
            [
                {token, token, undefined},
                {nkeys, nkey, []},
                {trusted_operators, jwt, []},
                {resolver_preload, jwt, []}
            ]
        ),
        new_login(#{methods => [page_method(Type, Settings) || Type <- Types]})
    end).

page_method(token, #{token := Token}) ->
    {token, Token};
page_method(nkey, #{nkeys := Keys}) ->
    {nkey, Keys};
page_method(jwt, #{trusted_operators := Operators, resolver_preload := Jwts}) ->
    jwt(Operators, [{undefined, Jwt} || Jwt <- Jwts], fun
        (operator, N) -> [N, <<"trusted_operators">>];
        (_, N) -> [N, <<"resolver_preload">>]
    end).

jwt(Operators, Accounts, PathOf) ->
    case nats_gateway_jwt:trust(Operators, Accounts) of
        {ok, Trust} -> {jwt, Trust};
        {error, {What, N}, Problem} -> invalid(PathOf(What, N), Problem)
    end.

new_login(Spec) ->
    case nats_gateway_login:new(Spec) of
        {ok, Login} -> Login;
        {error, no_such_user} -> invalid([<<"no_auth_user">>], <<"must be one of users">>)
    end.

methods(#{internal_authn := Methods}) ->
    [method([N, <<"internal_authn">>], Method) || {N, Method} <- numbered(Methods)].

method(_, #{type := token, token := Token}) ->
    {token, Token};
method(Path, #{type := nkey, nkeys := []}) ->
    invalid([<<"nkeys">> | Path], <<"must not be empty">>);
method(_, #{type := nkey, nkeys := Keys}) ->
    {nkey, Keys};
method(Path, #{type := jwt, trusted_operators := Operators, resolver := Resolver}) ->
    #{resolver_preload := Preload} = Resolver,
    PreloadPath = [<<"resolver_preload">>, <<"resolver">> | Path],
    _ = [invalid([<<"trusted_operators">> | Path], <<"must not be empty">>) || Operators =:= []],
    _ = [invalid(PreloadPath, <<"must not be empty">>) || Preload =:= []],
    jwt(Operators, [{Key, Jwt} || #{pubkey := Key, jwt := Jwt} <- Preload], fun
        (operator, N) -> [N, <<"trusted_operators">> | Path];
        (account, N) -> [<<"jwt">>, N | PreloadPath];
        (account_key, N) -> [<<"pubkey">>, N | PreloadPath]
    end).

user(N, #{user := undefined, nkey := undefined}) ->
    invalid([N, <<"users">>], <<"must have a user and password, or an nkey">>);
user(N, #{user := Name, nkey := Key}) when Name =/= undefined, Key =/= undefined ->
    invalid([N, <<"users">>], <<"must have either a user or an nkey">>);
user(N, #{nkey := Key, password := Password}) when Key =/= undefined, Password =/= undefined ->
    invalid([N, <<"users">>], <<"must have no password where it has an nkey">>);
user(N, #{user := <<>>}) ->
    invalid([<<"user">>, N, <<"users">>], <<"must not be empty">>);
user(_, User = #{permissions := Rules}) ->
    (maps:remove(permissions, User))#{rules => Rules}.

distinct(Names, Path) ->
    case length(lists:usort(Names)) =:= length(Names) of
        true -> ok;
        false -> invalid([Path], <<"must be different from each other">>)
    end.

numbered(List) -> lists:zip(lists:seq(1, length(List)), List).

%% Looks like nats-server's: an nkey of a server, unique per start.
server_id() ->
    Alphabet = <<"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567">>,
    Random = crypto:strong_rand_bytes(55),
    <<"N", <<<<(binary:at(Alphabet, Byte band 31))>> || <<Byte>> <= Random>>/binary>>.

table(Schema, Values, Path) when is_map(Values) ->
    Names = maps:from_list([{atom_to_binary(Name), Name} || Name <- maps:keys(Schema)]),
    case [Key || Key <- lists:sort(maps:keys(Values)), not is_map_key(Key, Names)] of
        [] ->
            maps:map(
                fun(Name, {Kind, Default}) ->
                    Key = atom_to_binary(Name),
                    case Values of
                        #{Key := Value} -> value(Kind, Value, [Key | Path]);
                        #{} -> default(Kind, Default, [Key | Path])
                    end
                end,
                Schema
            );
        [Key | _] ->
            invalid([Key | Path], [<<"unknown key; known here: ">>, known(Schema)])
    end;
table(_, _, Path) ->
    invalid(Path, <<"must be a table">>).

known(Schema) ->
    lists:join(<<", ">>, lists:sort([atom_to_binary(Name) || Name <- maps:keys(Schema)])).

default(_, required, Path) -> invalid(Path, <<"is missing">>);
default(Kind = {table, _}, Default, Path) -> value(Kind, Default, Path);
default(_, Default, _) -> Default.

value({table, Schema}, Value, Path) ->
    table(Schema, Value, Path);
value({named, Schema}, Value, Path) when is_map(Value) ->
    maps:map(fun(Name, Entry) -> table(Schema, Entry, [Name | Path]) end, Value);
value({named, _}, _, Path) ->
    invalid(Path, <<"must be a table of named tables">>);
value({list, Kind}, Values, Path) when is_list(Values) ->
    [value(Kind, Value, [N | Path]) || {N, Value} <- numbered(Values)];
value({list, _}, _, Path) ->
    invalid(Path, <<"must be a list">>);
value({by_type, Schemas}, Value, Path) when is_map(Value) ->
    Types = lists:sort(maps:keys(Schemas)),
    Type = value({one_of, Types}, maps:get(<<"type">>, Value, none), [<<"type">> | Path]),
    Table = table(maps:get(Type, Schemas), maps:remove(<<"type">>, Value), Path),
    Table#{type => Type};
value({by_type, _}, _, Path) ->
    invalid(Path, <<"must be a table">>);
value(secret, Value, Path) when is_binary(Value), Value =/= <<>> ->
    case nats_gateway_login:secret(Value) of
        {ok, Secret} -> Secret;
        {error, bad_hash} -> invalid(Path, <<"begins like a bcrypt hash, but is none">>);
        {error, hash_too_slow} -> invalid(Path, <<"must be a bcrypt hash of cost 16 at most">>)
    end;
value(secret, _, Path) ->
    invalid(Path, <<"must be a string that is not empty">>);
value(optional_secret, <<>>, _) ->
    undefined;
value(optional_secret, Value, Path) ->
    value(secret, Value, Path);
value(user_key, Value, Path) ->
    case is_binary(Value) andalso nats_gateway_login:user_key(Value) of
        {ok, Key} -> Key;
        _ -> invalid(Path, <<"must be the public NKey of a user (U…)"/utf8>>)
    end;
value({subjects, Queues}, Value, Path) when is_map(Value) ->
    Schema = #{allow => {{list, string}, all}, deny => {{list, string}, []}},
    Subjects = #{allow := Allow, deny := Deny} = table(Schema, Value, Path),
    _ = Allow =:= all orelse [subject(Queues, E, [N, <<"allow">> | Path]) || {N, E} <- numbered(Allow)],
    _ = [subject(Queues, Entry, [N, <<"deny">> | Path]) || {N, Entry} <- numbered(Deny)],
    _ = [
        invalid([<<"allow">> | Path], <<"must not be empty: leave it out, or deny \">\"">>)
     || Allow =:= []
    ],
    Subjects;
value(Kind = {subjects, _}, Value, Path) when is_binary(Value) ->
    value(Kind, [Value], Path);
value(Kind = {subjects, _}, Value, Path) when is_list(Value) ->
    value(Kind, #{<<"allow">> => Value}, Path);
value({subjects, _}, _, Path) ->
    invalid(Path, <<"must be a subject, a list of subjects, or a table with allow and deny">>);
value(responses, true, Path) ->
    value(responses, #{}, Path);
value(responses, false, _) ->
    undefined;
value(responses, Value, Path) when is_map(Value) ->
    table(#{max => {{limit, 1 bsl 30}, 1}, expires => {{duration, 0}, 120000}}, Value, Path);
value(responses, _, Path) ->
    invalid(Path, <<"must be true, false, or a table with max and expires">>);
value(string, Value, Path) ->
    case is_binary(Value) andalso binary:match(Value, <<0>>) =:= nomatch of
        true -> Value;
        false -> invalid(Path, <<"must be a string">>)
    end;
value(boolean, Value, Path) ->
    case is_boolean(Value) of
        true -> Value;
        false -> invalid(Path, <<"must be true or false">>)
    end;
value({duration, Min}, Value, Path) ->
    case duration(Value) of
        0 when Min =:= 0 -> infinity;
        %% the largest timeout that every timer of the runtime takes
        Ms when is_integer(Ms), Ms >= 1, Ms =< 16#FFFFFFFF -> Ms;
        _ when Min =:= 0 -> invalid(Path, <<"must be a duration such as \"30s\"; 0 is never">>);
        _ -> invalid(Path, <<"must be a duration such as \"30s\", at least 1 ms">>)
    end;
value({duration, Min, Max}, Value, Path) ->
    case duration(Value) of
        Ms when is_integer(Ms), Ms >= Min, Ms =< Max ->
            Ms;
        _ ->
            invalid(Path, [
                <<"must be a duration such as \"1s\", from ">>,
                integer_to_binary(Min),
                <<" to ">>,
                integer_to_binary(Max),
                <<" ms">>
            ])
    end;
value({bytes, Min, Max}, Value, Path) ->
    case bytes(Value) of
        Bytes when is_integer(Bytes), Bytes >= Min, Bytes =< Max ->
            Bytes;
        _ ->
            invalid(Path, [
                <<"must be a size from ">>,
                integer_to_binary(Min),
                <<" to ">>,
                integer_to_binary(Max),
                <<" bytes, such as 1048576 or \"1MB\"">>
            ])
    end;
value({integer, Min, Max}, Value, _) when is_integer(Value), Value >= Min, Value =< Max ->
    Value;
value({integer, Min, Max}, _, Path) ->
    invalid(Path, [
        <<"must be an integer from ">>,
        integer_to_binary(Min),
        <<" to ">>,
        integer_to_binary(Max)
    ]);
value({limit, _}, 0, _) ->
    infinity;
value({limit, Max}, Value, _) when is_integer(Value), Value >= 1, Value =< Max ->
    Value;
value({limit, Max}, _, Path) ->
    invalid(Path, [
        <<"must be an integer from 0 (no limit) to ">>, integer_to_binary(Max)
    ]);
value(address, Value, Path) ->
    case address(Value) of
        {ok, Address} ->
            Address;
        error ->
            invalid(Path, <<"must be a port, or an address such as \"127.0.0.1:4222\"">>)
    end;
value(url, Value, Path) ->
    case url(Value) of
        {ok, Upstream} -> Upstream;
        error -> invalid(Path, <<"must be a URL such as \"mqtt://127.0.0.1:1883\"">>)
    end;
value({one_of, Names}, Value, Path) ->
    case [Name || Name <- Names, atom_to_binary(Name) =:= Value] of
        [Name] ->
            Name;
        [] ->
            invalid(Path, [
                <<"must be one of ">>, lists:join(<<", ">>, [atom_to_binary(N) || N <- Names])
            ])
    end.

%% An integer is milliseconds; a string has units, "1m30s".
duration(Ms) when is_integer(Ms) -> Ms;
duration(Text) when is_binary(Text) ->
    units(Text, [
        {<<"ms">>, 1}, {<<"s">>, 1000}, {<<"m">>, 60000}, {<<"h">>, 3600000}, {<<"d">>, 86400000}
    ]);
duration(_) -> error.

bytes(Bytes) when is_integer(Bytes) -> Bytes;
bytes(Text) when is_binary(Text) ->
    case re:run(Text, <<"^[0-9]{1,12}$">>, [{capture, none}]) of
        match ->
            binary_to_integer(Text);
        nomatch ->
            units(Text, [{<<"B">>, 1}, {<<"KB">>, 1024}, {<<"MB">>, 1048576}, {<<"GB">>, 1073741824}])
    end;
bytes(_) -> error.

units(Text, Units) ->
    case re:run(Text, <<"^(?:\\s*([0-9]{1,12})\\s*([a-zA-Z]+))+\\s*$">>, [{capture, none}]) of
        match ->
            {match, Parts} = re:run(Text, <<"([0-9]+)\\s*([a-zA-Z]+)">>, [
                global, {capture, all_but_first, binary}
            ]),
            sum(Parts, Units, 0);
        nomatch ->
            error
    end.

sum([], _, Total) ->
    Total;
sum([[Number, Unit] | Parts], Units, Total) ->
    case [Factor || {Name, Factor} <- Units, string:equal(Name, Unit, true)] of
        [Factor] -> sum(Parts, Units, Total + binary_to_integer(Number) * Factor);
        [] -> error
    end.

address(Port) when is_integer(Port), Port >= 0, Port =< 65535 -> {ok, {{0, 0, 0, 0}, Port}};
address(Text) when is_binary(Text) ->
    case host_port(Text) of
        {ok, Host, Port} ->
            case inet:parse_strict_address(Host) of
                {ok, Address} -> {ok, {Address, Port}};
                {error, _} -> error
            end;
        error ->
            error
    end;
address(_) ->
    error.

url(<<"mqtt://", Rest/binary>>) ->
    case host_port(hd(binary:split(Rest, <<"/">>))) of
        {ok, Host, Port} -> {ok, {Host, Port}};
        error -> error
    end;
url(_) ->
    error.

%% `host:port', or `[v6]:port'.
host_port(Text) ->
    case re:run(Text, <<"^(?:\\[([0-9a-fA-F:.]+)\\]|([^:\\[\\]\\s@]+)):([0-9]{1,5})$">>, [
        {capture, all_but_first, list}
    ]) of
        {match, [V6, Name, Digits]} ->
            case list_to_integer(Digits) of
                Port when Port =< 65535 -> {ok, V6 ++ Name, Port};
                _ -> error
            end;
        nomatch ->
            error
    end.

%% A subject, or with a blank and a queue group behind it.
subject(queues, Entry, Path) ->
    case binary:split(Entry, <<" ">>, [global]) of
        [Subject, Queue] ->
            subject(no_queues, Subject, Path),
            subject(no_queues, Queue, Path);
        _ ->
            subject(no_queues, Entry, Path)
    end;
subject(no_queues, Subject, Path) ->
    HasBlank = binary:match(Subject, [<<" ">>, <<"\t">>, <<"\r">>, <<"\n">>]) =/= nomatch,
    case HasBlank orelse nats_gateway_nif:filter(Subject, <<>>) =:= invalid of
        false -> ok;
        true -> invalid(Path, <<"must be a valid subject">>)
    end.

%% No value goes into the text: it may be a secret.
-spec invalid([binary() | pos_integer()], iodata()) -> no_return().
invalid(Path, Problem) -> throw({invalid, Path, Problem}).

path([]) -> <<"the file">>;
path([Key]) -> Key;
path([N | Path]) when is_integer(N) -> [path(Path), $[, integer_to_binary(N), $]];
path([Key | Path]) -> [path(Path), $., Key].
