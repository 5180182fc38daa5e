%% The settings that the options of the command line ask for: a file, and what they set instead.
%%
%% What is wrong is thrown as `{stop, ExitStatus, Text}', where the text names the file and the
%% setting.
-module(nats_gateway_settings).

-export([read/1]).
-export([tables/1]).
-export([source/1]).
-export([wrong_file/3]).
-export([argument/1]).

-include("nats_gateway_exit.hrl").

-export_type([options/0]).

-type options() :: #{
    file => string(),
    upstream => binary(),
    listen => binary(),
    atom() => term()
}.

-spec read(options()) -> nats_gateway_config:config().
read(Options) ->
    Tables = override(Options, tables(Options)),
    case nats_gateway_file:parse(Tables) of
        {ok, Config = #{listeners := Listeners}} ->
            [check_files(Name, Tls, Options) || #{name := Name, tls := Tls} <- Listeners],
            Config;
        {error, Text} ->
            throw({stop, ?EX_CONFIG, [source(Options), Text]})
    end.

check_files(Name, Tls, Options) ->
    case nats_gateway_tls:load(Tls) of
        {ok, _} -> ok;
        {error, Problem} -> throw({stop, ?EX_CONFIG, wrong_file(Name, Problem, Options)})
    end.

%% A problem with a file of a listener's TLS.
-spec wrong_file(Listener :: binary(), nats_gateway_tls:problem(), options()) -> iodata().
wrong_file(Name, Problem, Options) ->
    [source(Options), nats_gateway_listener:certificate_problem(Name, Problem)].

%% What the file says, unchecked.
-spec tables(options()) -> #{binary() => nats_gateway_mqtt_nif:toml()}.
tables(#{file := File}) ->
    case file:read_file(File) of
        {ok, Toml} ->
            case nats_gateway_mqtt_nif:toml(Toml) of
                {ok, Tables} -> Tables;
                {error, Text} -> throw({stop, ?EX_CONFIG, [File, ": ", Text]})
            end;
        {error, Reason} ->
            throw({stop, ?EX_CONFIG, [File, ": ", file:format_error(Reason)]})
    end;
tables(_) ->
    #{}.

override(Options, Tables) ->
    WithUpstream =
        case Options of
            #{upstream := Url} -> put_in([<<"upstream">>, <<"url">>], Url, Tables);
            #{} -> Tables
        end,
    case Options of
        #{listen := Address} ->
            Listener = #{<<"tcp">> => #{<<"default">> => #{<<"bind">> => Address}}},
            put_in([<<"listeners">>], Listener, WithUpstream);
        #{} ->
            WithUpstream
    end.

put_in([Key], Value, Table) ->
    Table#{Key => Value};
put_in([Key | Keys], Value, Table) ->
    case maps:get(Key, Table, #{}) of
        Inner when is_map(Inner) -> Table#{Key => put_in(Keys, Value, Inner)};
        %% left as it is, because the check of the settings names the problem
        _ -> Table
    end.

%% A word of the command line, or of the environment, in UTF-8: the runtime has decoded it as the
%% locale says, and where there is none, each byte is a character.
-spec argument(string()) -> binary().
argument(Word) ->
    case file:native_name_encoding() of
        latin1 -> list_to_binary(Word);
        utf8 -> unicode:characters_to_binary(Word)
    end.

%% The beginning of a text about the file.
-spec source(options()) -> iodata().
source(#{file := File}) -> [File, ": "];
source(_) -> "".
